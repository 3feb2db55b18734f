//! Starts the real programs, breaks the way between them, and keeps its own count of what must arrive.
//!
//! The tests in `tests/` and `cargo xtask demo` are both written with these parts. Nothing here knows what is
//! inside a program: it sees processes, sockets and files, as an operator does.
//!
//! Every process gets an address of its own on the loopback network, a folder of its own, and is killed when its
//! value is dropped.

pub mod address;
pub mod agent;
pub mod browser;
pub mod certificates;
pub mod cloud;
pub mod collector;
pub mod connect_proxy;
pub mod dependencies;
pub mod enrolled;
pub mod ext4;
pub mod fashion;
pub mod faults;
pub mod interface;
pub mod ledger;
pub mod load;
pub mod machine;
pub mod mosquitto;
pub mod mosquitto_client;
pub mod namespace;
pub mod object_store;
pub mod operated;
pub mod operator;
pub mod peer;
pub mod places;
pub mod porch;
pub mod postgres;
pub mod program;
pub mod publisher;
pub mod recipes;
pub mod registry;
mod request;
pub mod scene;
pub mod scrape;
pub mod shelf_server;
pub mod sim;
pub mod sink;
pub mod skip;
pub mod soak;
pub mod tally;
pub mod wait;
pub mod webhook;
pub mod wire;

pub use agent::{Agent, AgentConfig};
pub use cloud::{Cloud, CloudSetup};
pub use collector::Collector;
pub use enrolled::Quickstart;
pub use ext4::Ext4;
pub use faults::FaultProxy;
pub use ledger::Ledger;
pub use load::{Load, Posted};
pub use machine::Machine;
pub use mosquitto::{Mosquitto, MosquittoSetup};
pub use mosquitto_client::Listener;
pub use namespace::CloudSide;
pub use object_store::ObjectStore;
pub use operated::Operated;
pub use operator::Operator;
pub use porch::Porch;
pub use postgres::Postgres;
pub use scene::Scene;
pub use scrape::Scrape;
pub use sink::Sink;
pub use tally::Tally;
