//! A program's `/metrics`, read as a scraper reads it.

use anyhow::{Context, Result};

/// One scrape.
#[derive(Debug, Clone)]
pub struct Scrape(String);

impl Scrape {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The value of one sample, written as it stands there: `name` or `name{label="x"}`.
    pub fn value(&self, sample: &str) -> Result<f64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        let value = line.with_context(|| format!("there is no {sample} in:\n{}", self.0))?;
        value.parse().with_context(|| format!("{sample} is `{value}`"))
    }

    /// Whether there is any sample of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.lines().filter_map(|line| line.strip_prefix(name)).any(|rest| rest.starts_with(['{', ' ']))
    }
}

/// The metrics that alert rules name: every word that begins with `hedge_`.
#[must_use]
pub fn names_in(rules: &str) -> Vec<String> {
    let words = rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let mut names: Vec<_> = words.filter(|word| word.starts_with("hedge_")).map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_found_by_its_whole_name_only() {
        let scrape = Scrape::new("a_total{x=\"1\"} 3\na_total_more 4\n# HELP b x\n".into());
        assert_eq!(scrape.value("a_total{x=\"1\"}").expect("there"), 3.0);
        assert!(scrape.has("a_total") && !scrape.has("a") && !scrape.has("b"));
        assert!(scrape.value("a_total").is_err());
        assert_eq!(names_in("rate(hedge_b[1m]) > hedge_a{x=\"hedge\"} + hedge_b"), ["hedge_a", "hedge_b"]);
    }
}
