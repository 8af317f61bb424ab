//! What the cases share.

pub(crate) mod app;
pub(crate) mod churn;
pub(crate) mod cpu;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod overload;
pub(crate) mod process;
pub(crate) mod proxies;
pub(crate) mod rescue;
pub(crate) mod table;
