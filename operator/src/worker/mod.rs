//! The Worker controller: `dereference -> validate -> build -> apply -> status`, one file a step.

pub mod annotate;
mod apply;
pub mod build;
mod covers;
pub mod dereference;
pub mod live;
pub mod naming;
mod owed;
pub mod pod_index;
pub mod pods;
pub mod reconcile;
pub mod status;
pub mod validate;

pub use reconcile::{note_all_told, run};
