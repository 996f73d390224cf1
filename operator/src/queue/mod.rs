//! The Queue controller: `dereference -> validate -> plan -> declare -> status`, one file a step.

mod dereference;
mod finalizer;
pub mod plan;
pub mod reconcile;
pub mod status;
pub mod validate;

pub use reconcile::run;
