//! Which field of a TOML document an error is about: the innermost thing that stands where the error does.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The field that an error is about, and where it stands. What is wrong with an entry of a list as a whole, `toml` puts to the
/// beginning of the list: it is the entry that the message names.
pub(super) fn place_of(text: &str, error: &toml::de::Error) -> (Vec<String>, Option<Range<usize>>) {
    let Some(at) = error.span() else { return (Vec::new(), None) };
    let field = field_at(text, &at);
    if let ([list, _], Ok(document)) = (field.as_slice(), DeTable::parse(text))
        && let Some(DeValue::Array(entries)) = document.get_ref().get(list.as_str()).map(Spanned::get_ref)
    {
        let names = entries.iter().filter_map(|entry| entry.get_ref().get("name")?.get_ref().as_str());
        // Messages begin with it; an entry may be called as a field is.
        let named = names.filter_map(|name| Some((error.message().find(&format!("`{name}`"))?, name)));
        if let Some((_, name)) = named.min() {
            let path = vec![list.clone(), name.to_owned()];
            let span = span_of(text, &path);
            return (path, span);
        }
    }
    (field, Some(at))
}

/// The names from the outermost to the field's own; an entry of a list goes by its `name`. None for the whole document.
fn field_at(text: &str, at: &Range<usize>) -> Vec<String> {
    let Ok(document) = DeTable::parse(text) else { return Vec::new() };
    let mut search = Search { at, path: Vec::new(), narrowest: usize::MAX, found: Vec::new() };
    search.table(document.get_ref());
    search.found
}

/// Where a field stands: its key, or the innermost table on the way to it that there is. An entry of a list goes by its
/// `name` or its number.
#[must_use]
pub fn span_of(text: &str, path: &[String]) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    let (mut table, mut found, mut path) = (document.get_ref(), None, path.iter());
    while let Some(name) = path.next() {
        let Some((key, value)) = table.get_key_value(name.as_str()) else { break };
        found = Some(key.span());
        let mut value = value;
        if let DeValue::Array(list) = value.get_ref()
            && let Some(entry) = path.next()
        {
            let by_name = |item: &&Spanned<DeValue<'_>>| {
                item.get_ref().get("name").and_then(|name| name.get_ref().as_str()) == Some(entry)
            };
            let by_number = || entry.parse().ok().and_then(|number: usize| list.get(number));
            let Some(item) = list.iter().find(by_name).or_else(by_number) else { break };
            (value, found) = (item, Some(item.span()));
        }
        let DeValue::Table(inner) = value.get_ref() else { break };
        table = inner;
    }
    found
}

struct Search<'a> {
    at: &'a Range<usize>,
    path: Vec<String>,
    narrowest: usize,
    found: Vec<String>,
}

impl Search<'_> {
    fn table(&mut self, table: &DeTable<'_>) {
        for (key, value) in table {
            self.enter(key.get_ref(), [key.span(), value.span()], value);
        }
    }

    fn enter(&mut self, name: &str, spans: [Range<usize>; 2], value: &Spanned<DeValue<'_>>) {
        self.path.push(name.to_owned());
        for span in spans {
            // A table's span may be its heading alone, so what is in it is looked at in any case.
            if span.start <= self.at.start && self.at.end <= span.end && span.len() <= self.narrowest {
                self.narrowest = span.len();
                self.found.clone_from(&self.path);
            }
        }
        match value.get_ref() {
            DeValue::Table(table) => self.table(table),
            DeValue::Array(list) => {
                for (position, entry) in list.iter().enumerate() {
                    let name = entry.get_ref().get("name").and_then(|name| name.get_ref().as_str());
                    let name = name.map_or_else(|| position.to_string(), str::to_owned);
                    self.enter(&name, [entry.span(), entry.span()], entry);
                }
            }
            _ => {}
        }
        self.path.pop();
    }
}

#[cfg(test)]
mod tests {
    use crate::ConfigFile;

    #[test]
    fn what_is_wrong_with_an_entry_of_a_list_is_said_at_its_own_place() {
        let text = "[[source]]\nname = \"a\"\nkind = \"http\"\n\n[[source]]\nname = \"b\"\nkind = \"folder\"\n";
        let read = |text: &str| ConfigFile::parse(text, "agent.toml", std::iter::empty()).map(drop);
        let error = read(text).expect_err("it has no path").to_string();
        assert!(error.starts_with("agent.toml:5: source.b: "), "{error}");
        let error = read(&text.replace("\"a\"", "\"path\"")).expect_err("it has no path").to_string();
        assert!(error.starts_with("agent.toml:5: source.b: "), "{error}");
        let error = read(&text.replace("folder", "foldr")).expect_err("no such kind").to_string();
        assert!(error.starts_with("agent.toml:7: source.b.kind: "), "{error}");
    }
}
