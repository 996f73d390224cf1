//! The scaler: `signals -> decide -> act`.
//!
//! `inputs`, `decide`, `need`, `reason`, `history`, `arrivals`, `failures`, `bursts`, `piles`, `beyond`, `movement`, `startup`, `sample`, `durability`, `schedule`, `asked`, `own`, `share`,
//! `side`, `look` and `cadence` are values and pure functions; `scrape`, `follow`, `task`, `act` and `tell` perform the effects. `board` is
//! what the Worker's reconcile reads of them, and `record` what `kubectl warren explain` does.

pub mod act;
mod arrivals;
pub mod asked;
mod beyond;
pub mod board;
mod bursts;
pub mod cadence;
pub mod decide;
mod durability;
mod failures;
mod follow;
pub mod history;
pub mod inputs;
mod look;
mod movement;
mod need;
mod own;
mod piles;
pub mod reason;
pub mod record;
pub mod sample;
pub mod schedule;
pub mod scrape;
mod share;
mod side;
mod startup;
pub mod task;
mod tell;
