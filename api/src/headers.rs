//! Header names. HTTP headers go between sidecar and application; AMQP headers travel with a message and never start with
//! `x-`, which RabbitMQ 4 keeps for itself.

/// AMQP: attempts so far, as a signed integer; absent means none.
pub const ATTEMPTS: &str = "warren-attempts";
/// AMQP: the exchange that a message was first published to.
pub const ORIGIN_EXCHANGE: &str = "warren-origin-exchange";
/// AMQP: the routing key that a message was first published with.
pub const ORIGIN_ROUTING_KEY: &str = "warren-origin-routing-key";
/// AMQP: the queue that a dead message came from.
pub const ORIGIN_QUEUE: &str = "warren-origin-queue";
/// AMQP: the `expiration` property of the original, which a copy must not carry.
pub const ORIGINAL_EXPIRATION: &str = "warren-original-expiration";
/// AMQP: the `user_id` property of the original, which a copy must not carry.
pub const ORIGINAL_USER_ID: &str = "warren-original-user-id";
/// AMQP: why a message was dead-lettered, as one word.
pub const DEAD_REASON: &str = "warren-dead-reason";
/// AMQP: why a message was dead-lettered, as text.
pub const DEAD_DETAIL: &str = "warren-dead-detail";
/// On a copy whose headers did not fit the broker's largest frame any more: the names of those that were left out.
pub const HEADERS_DROPPED: &str = "warren-headers-dropped";

/// HTTP: the header of a drain request that carries the drain token.
pub const DRAIN_TOKEN: &str = "warren-drain-token";
/// HTTP, to the application: the broker queue a message came from.
pub const QUEUE: &str = "warren-queue";
/// HTTP, to the application: the exchange a message was published to.
pub const EXCHANGE: &str = "warren-exchange";
/// HTTP, to the application: the routing key a message was published with.
pub const ROUTING_KEY: &str = "warren-routing-key";
/// HTTP, both ways: the message's id.
pub const MESSAGE_ID: &str = "warren-message-id";
/// HTTP, to the application: the message's id under the name that many frameworks know.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// HTTP, to the application: names this delivery in `/deliveries/{id}/ack`, for an answer that comes later.
pub const DELIVERY_ID: &str = "warren-delivery-id";
/// HTTP, to the application: how many messages a batch carries.
pub const BATCH_SIZE: &str = "warren-batch-size";
/// HTTP, to the application: which attempt this is, from 1.
pub const ATTEMPT: &str = "warren-attempt";
/// HTTP, to the application: how many attempts the ladder allows.
pub const MAX_ATTEMPTS: &str = "warren-max-attempts";
/// HTTP, to the application: the broker's redelivered flag.
pub const REDELIVERED: &str = "warren-redelivered";
/// HTTP, to the application: the quorum queue's delivery count.
pub const DELIVERY_COUNT: &str = "warren-delivery-count";
/// HTTP, to the application: the message's `timestamp` property, in seconds since 1970.
pub const TIMESTAMP: &str = "warren-timestamp";
/// HTTP, both ways: the message's `correlation_id` property.
pub const CORRELATION_ID: &str = "warren-correlation-id";
/// HTTP, both ways: the message's `reply_to` property.
pub const REPLY_TO: &str = "warren-reply-to";
/// HTTP, both ways: the message's `priority` property.
pub const PRIORITY: &str = "warren-priority";
/// HTTP, both ways: the message's `expiration` property, in milliseconds.
pub const EXPIRATION: &str = "warren-expiration";
/// HTTP, both ways: prefix of the message's own AMQP headers.
pub const HEADER_PREFIX: &str = "warren-header-";
/// HTTP, to the application: names of AMQP headers that did not fit.
pub const HEADERS_OMITTED: &str = "warren-headers-omitted";
/// HTTP, from the application: overrides the status: `ack`, `retry`, `dead-letter`, `later`.
pub const OUTCOME: &str = "warren-outcome";
/// HTTP, from the application: why, kept with a dead message.
pub const REASON: &str = "warren-reason";
