//! Which answerers there are, and which one is asked next. Everything here is decided without IO, a clock or chance.
//!
//! [`Config`] reads `cloud.toml` whole, [`Route`] chooses among the answerers of one task and rests those that are
//! down, [`Ledger`] keeps what calls cost under the month's ceiling. Who makes the calls is up to `model`.

mod config;
mod ledger;
mod route;

pub use config::{AnswererConfig, Config, Kind, MoneyConfig, PageConfig, TensorsAs};
pub use ledger::{Ledger, Micro, Month};
pub use route::{ANSWERERS_MAX, Choice, Condition, Declined, Ending, Route, Seat};
