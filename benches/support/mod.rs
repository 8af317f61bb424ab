//! What the cases share.

pub(crate) mod app;
pub(crate) mod capacity;
pub(crate) mod churn;
pub(crate) mod cpu;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod overload;
pub(crate) mod plot;
pub(crate) mod process;
pub(crate) mod proxies;
pub(crate) mod rescue;
pub(crate) mod restart;
pub(crate) mod results;
pub(crate) mod table;
pub(crate) mod tail;
pub(crate) mod threads;
