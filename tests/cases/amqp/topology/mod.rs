//! Queues kept on real brokers by the operator's own plan, lanes and status, without Kubernetes. Rows of the design's
//! behaviour and faults, on every release of RabbitMQ that is supported.

mod adoption;
mod changing;
mod deletion;
mod differences;
mod drift;
mod faults;
mod fields;
mod kept;
mod look;
mod rights;
mod tls;
