//! Whether an ONNX file stands alone: no data in other files, no operators of other libraries, no tensor that claims more
//! values than it brings. ONNX Runtime would open the first, load the second and allocate for the third.
//!
//! Reads only as much of Protocol Buffers as that takes, and only files whose sums a signature or manifest names.

use std::collections::BTreeSet;

/// Graphs within graphs, as loops and conditions have them.
const DEPTH_MAX: usize = 16;

/// The operators that ONNX Runtime brings.
const DOMAINS: [&str; 5] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"];

/// Two values of four bits share a byte; nothing is smaller.
const VALUES_PER_BYTE_MAX: u64 = 2;

/// The numbers of fields in `onnx.proto`.
mod field {
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const MODEL_TRAINING: u64 = 20;
    pub(super) const MODEL_FUNCTION: u64 = 25;
    pub(super) const TRAINING_GRAPHS: [u64; 2] = [1, 2];
    pub(super) const GRAPH_NODE: u64 = 1;
    pub(super) const GRAPH_TENSOR: u64 = 5;
    pub(super) const GRAPH_SPARSE: u64 = 15;
    pub(super) const NODE_ATTRIBUTE: u64 = 5;
    pub(super) const NODE_DOMAIN: u64 = 7;
    pub(super) const FUNCTION_NODE: u64 = 7;
    pub(super) const FUNCTION_DOMAIN: u64 = 10;
    pub(super) const FUNCTION_ATTRIBUTE: u64 = 11;
    pub(super) const ATTRIBUTE_TENSORS: [u64; 2] = [5, 10];
    pub(super) const ATTRIBUTE_GRAPHS: [u64; 2] = [6, 11];
    pub(super) const ATTRIBUTE_SPARSE: [u64; 2] = [22, 23];
    pub(super) const SPARSE_TENSORS: [u64; 2] = [1, 2];
    pub(super) const TENSOR_DIMS: u64 = 1;
    pub(super) const TENSOR_EXTERNAL: u64 = 13;
    pub(super) const TENSOR_LOCATION: u64 = 14;
}

/// Why the file is refused, in one sentence.
pub(super) fn check(model: &[u8]) -> Result<(), String> {
    let fields = || Fields(model);
    let mut functions = BTreeSet::new();
    for found in fields() {
        if let (field::MODEL_FUNCTION, Value::Bytes(function)) = found? {
            functions.extend(texts(function, field::FUNCTION_DOMAIN)?);
        }
    }
    let reader = Reader { functions };
    let mut graphs = 0;
    for found in fields() {
        match found? {
            (field::MODEL_GRAPH, Value::Bytes(graph)) => {
                graphs += 1;
                reader.graph(graph, 0)?;
            }
            (field::MODEL_FUNCTION, Value::Bytes(function)) => reader.function(function)?,
            (field::MODEL_TRAINING, Value::Bytes(training)) => {
                for graph in messages(training, &field::TRAINING_GRAPHS)? {
                    reader.graph(graph, 0)?;
                }
            }
            _ => {}
        }
    }
    if graphs == 0 { Err("it holds no ONNX graph".to_owned()) } else { Ok(()) }
}

struct Reader {
    /// Domains whose operators the file itself defines.
    functions: BTreeSet<String>,
}

impl Reader {
    fn graph(&self, graph: &[u8], depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("its graphs lie more than {DEPTH_MAX} deep within each other"));
        }
        for node in messages(graph, &[field::GRAPH_NODE])? {
            self.node(node, depth)?;
        }
        messages(graph, &[field::GRAPH_TENSOR])?.into_iter().try_for_each(tensor)?;
        messages(graph, &[field::GRAPH_SPARSE])?.into_iter().try_for_each(sparse)
    }

    fn function(&self, function: &[u8]) -> Result<(), String> {
        for node in messages(function, &[field::FUNCTION_NODE])? {
            self.node(node, 0)?;
        }
        for attribute in messages(function, &[field::FUNCTION_ATTRIBUTE])? {
            self.attribute(attribute, 0)?;
        }
        Ok(())
    }

    fn node(&self, node: &[u8], depth: usize) -> Result<(), String> {
        for domain in texts(node, field::NODE_DOMAIN)? {
            if !DOMAINS.contains(&domain.as_str()) && !self.functions.contains(&domain) {
                let shown: String = domain.chars().filter(|c| !c.is_control()).take(64).collect();
                return Err(format!("it uses custom operators (domain `{shown}`), which no device has"));
            }
        }
        messages(node, &[field::NODE_ATTRIBUTE])?.into_iter().try_for_each(|found| self.attribute(found, depth))
    }

    fn attribute(&self, attribute: &[u8], depth: usize) -> Result<(), String> {
        messages(attribute, &field::ATTRIBUTE_TENSORS)?.into_iter().try_for_each(tensor)?;
        messages(attribute, &field::ATTRIBUTE_SPARSE)?.into_iter().try_for_each(sparse)?;
        let mut graphs = messages(attribute, &field::ATTRIBUTE_GRAPHS)?.into_iter();
        graphs.try_for_each(|graph| self.graph(graph, depth + 1))
    }
}

fn sparse(sparse: &[u8]) -> Result<(), String> {
    messages(sparse, &field::SPARSE_TENSORS)?.into_iter().try_for_each(tensor)
}

fn tensor(tensor: &[u8]) -> Result<(), String> {
    let mut values: u64 = 1;
    for found in Fields(tensor) {
        match found? {
            (field::TENSOR_EXTERNAL, _) | (field::TENSOR_LOCATION, Value::Number(1)) => {
                return Err("it keeps data in another file; save it as one file".to_owned());
            }
            (field::TENSOR_DIMS, Value::Number(size)) => values = values.saturating_mul(size),
            (field::TENSOR_DIMS, Value::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    values = values.saturating_mul(varint(&mut packed)?);
                }
            }
            _ => {}
        }
    }
    if values > (tensor.len() as u64).saturating_mul(VALUES_PER_BYTE_MAX).max(1) {
        return Err(format!("a tensor of it claims {values} values and brings {} bytes", tensor.len()));
    }
    Ok(())
}

/// The messages in these fields of a message.
fn messages<'a>(message: &'a [u8], fields: &[u64]) -> Result<Vec<&'a [u8]>, String> {
    let mut found = Vec::new();
    for one in Fields(message) {
        if let (number, Value::Bytes(bytes)) = one?
            && fields.contains(&number)
        {
            found.push(bytes);
        }
    }
    Ok(found)
}

fn texts(message: &[u8], field: u64) -> Result<Vec<String>, String> {
    let texts = messages(message, &[field])?.into_iter();
    Ok(texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect())
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed size; nothing here is.
    Other,
}

/// The fields of a message, in the file's order. Ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let found = self.read();
        if found.is_err() {
            self.0 = &[];
        }
        Some(found)
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<(u64, Value<'a>), String> {
        let tag = varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut self.0)?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = varint(&mut self.0)?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(NO_ONNX.to_owned()),
        };
        Ok((tag >> 3, value))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let (taken, rest) =
            usize::try_from(length).ok().and_then(|length| self.0.split_at_checked(length)).ok_or(NO_ONNX)?;
        self.0 = rest;
        Ok(taken)
    }
}

const NO_ONNX: &str = "it is no whole ONNX file";

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(NO_ONNX)?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(NO_ONNX.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::cast_possible_truncation, reason = "seven bits each")]
    fn message(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("a short message");
        assert!(length < 0x80, "a varint of one byte");
        // A tag of more than seven bits takes two bytes.
        let tag = u16::from(number) << 3 | 2;
        let tag = if tag < 0x80 { vec![tag as u8] } else { vec![(tag & 0x7f) as u8 | 0x80, (tag >> 7) as u8] };
        [&tag[..], &[length], content].concat()
    }

    /// A model with this initializer and a node with this attribute.
    fn model(initializer: &[u8], attribute: &[u8]) -> Vec<u8> {
        let node = message(1, &message(5, attribute));
        message(7, &[node, message(5, initializer)].concat())
    }

    #[track_caller]
    fn refused(model: &[u8], because: &str) {
        let why = check(model).expect_err("it is refused");
        assert!(why.contains(because), "{why}");
    }

    #[test]
    fn data_in_another_file_is_refused_wherever_it_hides() {
        let location = [14 << 3, 1];
        let entry = message(13, b"x");
        check(&model(&[], &[])).expect("nothing is wrong");
        refused(&model(&location, &[]), "another file");
        refused(&model(&entry, &[]), "another file");
        refused(&model(&[], &message(5, &location)), "another file");
        let inner = message(6, &message(5, &entry));
        refused(&model(&[], &inner), "another file");
        refused(&message(7, &message(15, &message(1, &entry))), "another file");
        refused(&message(25, &message(7, &message(5, &message(5, &entry)))), "another file");
    }

    #[test]
    fn custom_operators_are_refused_and_those_the_file_defines_are_not() {
        let node = message(1, &message(7, b"my.ops"));
        let graph = message(7, &node);
        refused(&graph, "`my.ops`");
        let function = message(25, &message(10, b"my.ops"));
        check(&[graph, function].concat()).expect("it brings them");
        check(&message(7, &message(1, &message(7, b"com.microsoft")))).expect("ONNX Runtime has them");
    }

    #[test]
    fn a_tensor_that_claims_more_than_it_brings_is_refused() {
        let huge = [&[1 << 3, 0xff, 0xff, 0xff, 0xff, 0x7f, 1 << 3, 0xff, 0xff, 0xff, 0xff, 0x7f][..]].concat();
        refused(&model(&huge, &[]), "claims");
        refused(&model(&message(1, &[0xff, 0xff, 0x7f]), &[]), "claims");
        check(&model(&[&[1 << 3, 4][..], &message(9, &[0; 16])].concat(), &[])).expect("four floats");
    }

    #[test]
    fn whatever_is_cut_or_changed_gives_an_answer() {
        let whole = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/src/runtime/probe.onnx")).expect("a model");
        check(&whole).expect("a good model");
        for end in 0..whole.len() {
            drop(check(&whole[..end]));
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                drop(check(&changed));
            }
        }
        refused(b"", "no ONNX graph");
        let mut deep = Vec::new();
        for _ in 0..20 {
            deep = message(1, &message(5, &message(6, &deep[..deep.len().min(100)])));
        }
        drop(check(&message(7, &deep)));
    }
}
