//! The one accept loop of Hedge's programs: every connection has a place, a time limit, and an end.
//!
//! ```text
//! accept ─▶ room? ─ no ─▶ the peer that has kept us waiting longest is closed
//!             │ yes
//!             ▼
//!         greeting (TLS) ─▶ a request's head ─▶ its body ─▶ being answered ─▶ reading the answer ─┐
//!                           ▲                                                                      │
//!                           └──────────────────────────────────────────────────────────────────────┘
//! ```
//! In every step but "being answered" it is the peer's turn. A full house closes a peer whose turn it has been for
//! longest, so that slow or silent peers, however many, never keep a good one out. A caller being answered is never
//! closed for another; when everybody is, the next one waits in the kernel's queue.
//!
//! [`serve`] speaks HTTP, [`accept`] hands out connections of any kind. [`Door`] looks at what a browser says about
//! where a request comes from. What a request may ask for is the routes' business.

mod door;
mod house;
mod http;
mod socket;
mod stream;

pub use door::{Door, OPERATE_HEADER, Refused};
pub use house::{Accepted, Bounds, accept};
pub use http::{BODY_WAIT_MAX, HEAD_WAIT_MAX, serve};
pub use socket::{ListenError, Listener, Socket, sender};
pub use tokio_util::sync::CancellationToken;
