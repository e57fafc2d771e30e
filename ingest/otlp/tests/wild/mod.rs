//! Bodies as nobody would send them: shuffled, split, repeated, padded, cut and flipped. Every one follows from a seed.

/// A tiny generator (xorshift64*); proptest chooses the seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((self.next() >> 33) as usize) % count
    }

    /// True once in `count` times.
    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 56) as u8).collect()
    }
}

/// A field before it is written.
#[derive(Clone)]
enum Node {
    Varint(u32, u64),
    Fixed64(u32, u64),
    Fixed32(u32, u32),
    Bytes(u32, Vec<u8>),
    Message(u32, Vec<Node>),
    Group(u32, Vec<Node>),
}

/// How wild the writing is.
struct Style {
    /// Fields are shuffled, repeated and split; strangers stand among them.
    is_mixed: bool,
    /// Varints may be longer than needed.
    is_padded: bool,
}

/// A request body; well-formed protobuf three times out of four.
pub(crate) fn body(seed: u64) -> Vec<u8> {
    let dice = &mut Dice::new(seed);
    let style = Style { is_mixed: !dice.one_in(4), is_padded: dice.one_in(2) };
    let count = dice.below(4);
    let nodes = (0..count).map(|_| resource_spans(dice)).collect();
    let mut out = Vec::new();
    write_all(nodes, &style, dice, &mut out);
    if dice.one_in(4) && !out.is_empty() {
        damage(&mut out, dice);
    }
    out
}

/// Cuts or flips somewhere.
pub(crate) fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    if dice.one_in(3) {
        bytes.truncate(dice.below(bytes.len()));
    }
    for _ in 0..dice.below(3) {
        if !bytes.is_empty() {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
        }
    }
}

fn some(dice: &mut Dice, most: usize, one: fn(&mut Dice) -> Node) -> Vec<Node> {
    (0..dice.below(most + 1)).map(|_| one(dice)).collect()
}

fn resource_spans(dice: &mut Dice) -> Node {
    let mut attributes = some(dice, 3, |dice| attribute(dice, 1));
    for _ in 0..dice.below(3) {
        let value =
            if dice.one_in(5) { any_value(dice, 2, 1) } else { Node::Message(2, vec![text(dice, 1)]) };
        attributes.push(Node::Message(1, vec![Node::Bytes(1, b"service.name".to_vec()), value]));
    }
    if dice.one_in(5) {
        attributes.push(Node::Varint(2, dice.next() >> dice.below(64)));
    }
    let mut fields = vec![Node::Message(1, attributes)];
    fields.extend(some(dice, 3, scope_spans));
    if dice.one_in(3) {
        fields.push(text(dice, 3));
    }
    Node::Message(1, fields)
}

fn scope_spans(dice: &mut Dice) -> Node {
    let mut fields = vec![];
    if !dice.one_in(4) {
        let mut scope = vec![text(dice, 1), text(dice, 2)];
        scope.extend(some(dice, 2, |dice| attribute(dice, 3)));
        fields.push(Node::Message(1, scope));
    }
    fields.extend(some(dice, 5, span));
    if dice.one_in(3) {
        fields.push(text(dice, 3));
    }
    Node::Message(2, fields)
}

fn id(dice: &mut Dice, number: u32, length: usize) -> Node {
    let length = if dice.one_in(30) { dice.below(20) } else { length };
    Node::Bytes(number, if dice.one_in(30) { vec![0; length] } else { dice.bytes(length) })
}

fn span(dice: &mut Dice) -> Node {
    let start = dice.next() >> 3;
    let mut fields = vec![id(dice, 1, 16), id(dice, 2, 8)];
    if dice.one_in(2) {
        fields.push(trace_state(dice));
    }
    if dice.one_in(2) {
        fields.push(id(dice, 4, 8));
    }
    fields.push(text(dice, 5));
    fields.push(Node::Varint(6, dice.pick(&[0, 1, 2, 3, 4, 5, 6, u64::MAX, 1 << 32 | 2, 1 << 31])));
    fields.push(Node::Fixed64(7, start));
    fields.push(Node::Fixed64(8, if dice.one_in(5) { dice.next() } else { start + dice.next() % 1_000_000 }));
    fields.extend(some(dice, 4, |dice| attribute(dice, 9)));
    for number in [10, 12, 14] {
        if dice.one_in(8) {
            fields.push(Node::Varint(number, dice.next() >> dice.below(64)));
        }
    }
    fields.extend(some(dice, 1, |dice| {
        let attributes = some(dice, 2, |dice| attribute(dice, 3));
        let own = [Node::Fixed64(1, dice.next()), text(dice, 2), Node::Varint(4, 7)];
        Node::Message(11, own.into_iter().chain(attributes).collect())
    }));
    fields.extend(some(dice, 1, |dice| {
        let attributes = some(dice, 2, |dice| attribute(dice, 4));
        let own =
            [id(dice, 1, 16), id(dice, 2, 8), text(dice, 3), Node::Varint(5, 1), Node::Fixed32(6, 0x300)];
        Node::Message(13, own.into_iter().chain(attributes).collect())
    }));
    if dice.one_in(2) {
        let code = Node::Varint(3, dice.pick(&[0, 1, 2, 3, 1 << 32 | 2, u64::MAX]));
        fields.push(Node::Message(15, vec![text(dice, 2), code]));
    }
    if dice.one_in(2) {
        fields.push(Node::Fixed32(16, (dice.next() >> 32) as u32));
    }
    Node::Message(2, fields)
}

fn trace_state(dice: &mut Dice) -> Node {
    let states: [&[u8]; 8] = [
        b"",
        b"ot=th:c",
        b"vendor=1,ot=th:fd70a;rv:0123456789abcd",
        b"ot=rv:ffffffffffffff",
        b"ot=th:;rv:12",
        b"a=b , ot=x:y;th:8",
        b"ot=th:0",
        b"ot=th:c,bad=\xFF",
    ];
    Node::Bytes(3, dice.pick(&states).to_vec())
}

fn text(dice: &mut Dice, number: u32) -> Node {
    let texts: [&[u8]; 7] = [
        b"",
        b"a",
        b"GET /users/{id}",
        "gr\u{FC}\u{DF}e \u{1F980}".as_bytes(),
        b"\xFFbad",
        &[b'x'; 127],
        &[b'y'; 300],
    ];
    // Mostly valid, or hardly any body would be valid as a whole.
    Node::Bytes(number, if dice.one_in(4) { dice.pick(&texts) } else { dice.pick(&texts[..4]) }.to_vec())
}

fn attribute(dice: &mut Dice, number: u32) -> Node {
    let mut fields = vec![text(dice, 1)];
    if !dice.one_in(10) {
        fields.push(any_value(dice, 2, 3));
    }
    Node::Message(number, fields)
}

fn any_value(dice: &mut Dice, number: u32, depth: usize) -> Node {
    let value = match dice.below(if depth == 0 { 6 } else { 8 }) {
        0 => text(dice, 1),
        1 => Node::Varint(2, dice.pick(&[0, 1, 2])),
        2 => Node::Varint(3, dice.next() >> dice.below(64)),
        3 => {
            let numbers = [0.0, -0.0, 1.5, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5e-324];
            let bits = dice.pick(&numbers).to_bits();
            Node::Fixed64(4, if dice.one_in(2) { bits } else { dice.next() })
        }
        4 => {
            let length = dice.below(9);
            Node::Bytes(7, dice.bytes(length))
        }
        5 => return Node::Message(number, vec![]),
        6 => {
            let values = (0..dice.below(3)).map(|_| any_value(dice, 1, depth - 1)).collect();
            Node::Message(5, values)
        }
        _ => {
            let pair = |dice: &mut Dice| Node::Message(1, vec![text(dice, 1), any_value(dice, 2, depth - 1)]);
            let pairs = (0..dice.below(3)).map(|_| pair(dice)).collect();
            Node::Message(6, pairs)
        }
    };
    Node::Message(number, vec![value])
}

fn stranger(dice: &mut Dice, depth: usize) -> Node {
    let number = dice.pick(&[17, 99, 1000, 19_000, (1 << 29) - 1]);
    match dice.below(5) {
        0 => Node::Varint(number, dice.next()),
        1 => Node::Fixed64(number, dice.next()),
        2 => Node::Fixed32(number, 7),
        3 => {
            let length = dice.below(5);
            Node::Bytes(number, dice.bytes(length))
        }
        _ => {
            let count = if depth == 0 { 0 } else { dice.below(3) };
            Node::Group(number, (0..count).map(|_| stranger(dice, depth - 1)).collect())
        }
    }
}

fn write_all(mut nodes: Vec<Node>, style: &Style, dice: &mut Dice, out: &mut Vec<u8>) {
    if style.is_mixed {
        mix(&mut nodes, dice);
    }
    for node in nodes {
        write(node, style, dice, out);
    }
}

fn mix(nodes: &mut Vec<Node>, dice: &mut Dice) {
    if dice.one_in(6) {
        let stranger = stranger(dice, 3);
        nodes.push(stranger);
    }
    if dice.one_in(8) && !nodes.is_empty() {
        let again = nodes[dice.below(nodes.len())].clone();
        nodes.push(again);
    }
    if dice.one_in(4) {
        // A message in two parts, which readers must merge (or, of a repeated field, count twice).
        let at = dice.below(nodes.len().max(1));
        if let Some(Node::Message(number, inner)) = nodes.get_mut(at) {
            let second = inner.split_off(dice.below(inner.len() + 1));
            let second = Node::Message(*number, second);
            nodes.push(second);
        }
    }
    if dice.one_in(400) {
        nodes.push(Node::Varint(dice.pick(&[1, 2, 3, 7, 9, 15, 16]), 3));
    }
    if dice.one_in(2) {
        for at in (1..nodes.len()).rev() {
            nodes.swap(at, dice.below(at + 1));
        }
    }
}

fn write(node: Node, style: &Style, dice: &mut Dice, out: &mut Vec<u8>) {
    let key = |number: u32, wire: u32| u64::from(number << 3 | wire);
    match node {
        Node::Varint(number, value) => {
            varint(key(number, 0), style, dice, out);
            varint(value, style, dice, out);
        }
        Node::Fixed64(number, value) => {
            varint(key(number, 1), style, dice, out);
            out.extend(value.to_le_bytes());
        }
        Node::Fixed32(number, value) => {
            varint(key(number, 5), style, dice, out);
            out.extend(value.to_le_bytes());
        }
        Node::Bytes(number, bytes) => {
            varint(key(number, 2), style, dice, out);
            varint(bytes.len() as u64, style, dice, out);
            out.extend(bytes);
        }
        Node::Message(number, nodes) => {
            let mut inner = Vec::new();
            write_all(nodes, style, dice, &mut inner);
            write(Node::Bytes(number, inner), style, dice, out);
        }
        Node::Group(number, nodes) => {
            varint(key(number, 3), style, dice, out);
            write_all(nodes, style, dice, out);
            varint(key(number, 4), style, dice, out);
        }
    }
}

fn varint(mut value: u64, style: &Style, dice: &mut Dice, out: &mut Vec<u8>) {
    let mut length = 1;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
        length += 1;
    }
    let padding = if style.is_padded && dice.one_in(20) { dice.below(11 - length) } else { 0 };
    if padding == 0 {
        out.push(value as u8);
    } else {
        out.push(value as u8 | 0x80);
        out.extend(std::iter::repeat_n(0x80, padding - 1));
        out.push(0);
    }
}
