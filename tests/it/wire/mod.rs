//! Keys, values and requests on real nodes.

pub(crate) mod foreign_values;
pub(crate) mod rw_notifications;
pub(crate) mod rw_wire_format;
pub(crate) mod wire_format;
