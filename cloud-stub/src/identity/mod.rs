//! A small certificate authority for devices: signs, remembers whom it signed for, and renews.
//!
//! An operator with an authority of their own does not need it. No private key of a device ever comes here.

mod authority;
mod enrolment;
mod registry;
mod tls;

pub use authority::{Authority, AuthorityError, Issued, write};
pub use enrolment::{Terms, router};
pub use registry::{Claim, Device, Registry, new_secret};
pub use tls::{certificate_in, common_name, fresh_certificate, server_config};
