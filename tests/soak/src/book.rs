//! Who has which address, by this program's own account: nobody else's is believed.
//!
//! An address counts as taken from the end of the ADD that gave it until the beginning of
//! the first DEL or GC that may give it back; so an address that is taken twice is on two
//! pods for certain.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The addresses of pods that live.
#[derive(Debug, Default)]
pub(crate) struct Book {
    holders: BTreeMap<IpAddr, String>,
}

/// An address on two pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Duplicate {
    address: IpAddr,
    holders: [String; 2],
}

impl std::fmt::Display for Duplicate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [first, second] = &self.holders;
        write!(
            f,
            "{} is on two pods that live: {first} and {second}",
            self.address
        )
    }
}

impl std::error::Error for Duplicate {}

impl Book {
    /// An ADD gave `address` to `pod`; once more to the same pod is no news.
    pub(crate) fn given(&mut self, address: IpAddr, pod: &str) -> Result<(), Duplicate> {
        let holder = self
            .holders
            .entry(address)
            .or_insert_with(|| pod.to_owned());
        if holder == pod {
            return Ok(());
        }
        Err(Duplicate {
            address,
            holders: [holder.clone(), pod.to_owned()],
        })
    }

    /// A DEL or GC of `pod` begins.
    pub(crate) fn gives_back(&mut self, pod: &str) {
        self.holders.retain(|_, holder| holder != pod);
    }

    /// The pods that have an address.
    pub(crate) fn pods(&self) -> Vec<&str> {
        self.holders.values().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 64, 0, last])
    }

    #[test]
    fn an_address_on_two_pods_is_found_and_both_are_named() {
        let mut book = Book::default();
        book.given(address(1), "n1/a").unwrap();
        book.given(address(1), "n1/a").unwrap();
        let found = book.given(address(1), "n2/b").unwrap_err().to_string();
        assert_eq!(found, "10.64.0.1 is on two pods that live: n1/a and n2/b");
    }

    #[test]
    fn an_address_that_was_given_back_may_be_anothers() {
        let mut book = Book::default();
        book.given(address(1), "n1/a").unwrap();
        book.given(address(2), "n1/b").unwrap();
        book.gives_back("n1/a");
        book.given(address(1), "n2/c").unwrap();
        assert_eq!(book.pods(), ["n2/c", "n1/b"]);
        assert!(book.given(address(2), "n2/c").is_err());
    }
}
