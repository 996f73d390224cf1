//! The Queue controller: `dereference -> validate -> plan -> declare -> status`, one file a step.

pub mod consumers;
mod dereference;
mod finalizer;
pub(crate) mod place;
pub mod plan;
pub mod reconcile;
mod removal;
pub mod status;
pub mod validate;

pub use reconcile::run;
