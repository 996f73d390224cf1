//! The Queue controller: `dereference -> validate -> plan -> declare -> status`, one file a step.

mod dereference;
mod finalizer;
mod plan;
pub mod reconcile;
pub mod status;
mod validate;

pub use reconcile::run;
