//! The application, as an HTTP server on localhost: requests, answers, and the connections between.

pub mod answer;
pub mod batch;
pub mod endpoint;
pub mod pool;
pub mod request;
mod socket;
pub mod trace;
