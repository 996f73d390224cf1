//! The scaler: `signals -> decide -> act`.
//!
//! `decide`, `history` and `sample` are values and pure functions; `scrape`, `task` and `act` perform the effects, and
//! `board` is what the Worker's reconcile reads of them.

pub mod act;
pub mod board;
pub mod decide;
pub mod history;
pub mod record;
pub mod sample;
pub mod scrape;
pub mod task;
