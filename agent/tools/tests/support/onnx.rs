//! Tiny ONNX models, laid down as protobuf (onnx.proto3; opset 13).

const FLOAT: u64 = 1;
pub(crate) const UINT8: u64 = 2;
pub(crate) const INT64: u64 = 7;

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7F).expect("seven bits") | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).expect("seven bits"));
    bytes
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn text(field: u64, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}

/// An attribute that holds whole numbers, or one.
pub(crate) enum Attribute {
    Int(&'static str, u64),
    Ints(&'static str, &'static [u64]),
}

impl Attribute {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Int(name, value) => [text(1, name), number(3, *value), number(20, 2)].concat(),
            Self::Ints(name, values) => {
                let values = values.iter().flat_map(|value| number(8, *value)).collect();
                [text(1, name), values, number(20, 7)].concat()
            }
        }
    }
}

/// A model being written.
#[derive(Clone)]
pub(crate) struct Onnx(Vec<u8>);

impl Onnx {
    /// With the input `x`; -1 is a size left open.
    pub(crate) fn new(shape: &[i64]) -> Self {
        Self::new_of(FLOAT, shape)
    }

    /// The same of another number type.
    pub(crate) fn new_of(kind: u64, shape: &[i64]) -> Self {
        Self(text(2, "graph")).port(11, "x", &tensor(kind, shape))
    }

    /// The mean of each colour of a picture, times `scale`, and a 0: `l`, of four numbers.
    pub(crate) fn colours(shape: &[i64], scale: f32) -> Self {
        Self::new(shape).means("x").scaled(scale)
    }

    pub(crate) fn means(self, of: &str) -> Self {
        self.node("ReduceMean", &[of], "m", &[Attribute::Ints("axes", &[2, 3]), Attribute::Int("keepdims", 0)])
    }

    pub(crate) fn scaled(self, scale: f32) -> Self {
        self.floats("k", &[1], &[scale]).floats("z", &[1, 1], &[0.0]).node("Mul", &["m", "k"], "l3", &[]).node(
            "Concat",
            &["l3", "z"],
            "l",
            &[Attribute::Int("axis", 1)],
        )
    }

    pub(crate) fn node(self, operator: &str, inputs: &[&str], output: &str, attributes: &[Attribute]) -> Self {
        self.node_of("", operator, inputs, output, attributes)
    }

    pub(crate) fn node_of(
        mut self,
        domain: &str,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[Attribute],
    ) -> Self {
        let mut node: Vec<u8> = inputs.iter().flat_map(|input| text(1, input)).collect();
        node.extend([text(2, output), text(4, operator)].concat());
        attributes.iter().for_each(|attribute| node.extend(bytes(5, &attribute.bytes())));
        node.extend(text(7, domain));
        self.0.extend(bytes(1, &node));
        self
    }

    pub(crate) fn floats(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, FLOAT, shape, &bytes(9, &data))
    }

    pub(crate) fn int64s(self, name: &str, values: &[i64]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, INT64, &[values.len() as u64], &bytes(9, &data))
    }

    pub(crate) fn byte(self, name: &str, value: u8) -> Self {
        self.constant(name, UINT8, &[], &bytes(9, &[value]))
    }

    /// Numbers that lie in another file.
    pub(crate) fn elsewhere(self, name: &str, shape: &[u64], file: &str) -> Self {
        let entry = bytes(13, &[text(1, "location"), text(2, file)].concat());
        self.constant(name, FLOAT, shape, &[entry, number(14, 1)].concat())
    }

    fn constant(mut self, name: &str, kind: u64, shape: &[u64], data: &[u8]) -> Self {
        let shape: Vec<u8> = shape.iter().flat_map(|size| number(1, *size)).collect();
        self.0.extend(bytes(5, &[shape, number(2, kind), text(8, name), data.to_vec()].concat()));
        self
    }

    pub(crate) fn output(self, name: &str, shape: &[i64]) -> Self {
        self.port(12, name, &tensor(FLOAT, shape))
    }

    pub(crate) fn output_of(self, name: &str, kind: u64, shape: &[i64]) -> Self {
        self.port(12, name, &tensor(kind, shape))
    }

    /// A list of maps from numbers to numbers, as scikit-learn's exports have it.
    pub(crate) fn output_of_maps(self, name: &str) -> Self {
        let map = bytes(5, &[number(1, INT64), bytes(2, &tensor(FLOAT, &[]))].concat());
        self.port(12, name, &bytes(4, &bytes(1, &map)))
    }

    fn port(mut self, field: u64, name: &str, kind: &[u8]) -> Self {
        self.0.extend(bytes(field, &[text(1, name), bytes(2, kind)].concat()));
        self
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        let opset = |domain: &str, version| bytes(8, &[text(1, domain), number(2, version)].concat());
        [number(1, 7), opset("", 13), opset("ai.onnx.ml", 2), bytes(7, &self.0)].concat()
    }
}

fn tensor(kind: u64, shape: &[i64]) -> Vec<u8> {
    let size = |size: &i64| match u64::try_from(*size) {
        Ok(size) => bytes(1, &number(1, size)),
        Err(_) => bytes(1, &text(2, "n")),
    };
    let shape: Vec<u8> = shape.iter().flat_map(size).collect();
    bytes(1, &[number(1, kind), bytes(2, &shape)].concat())
}
