//! A trace as a tree: children under their parent, in order of their start, with durations.

use std::collections::HashMap;

use ingest_otlp::visit_spans;
use query_api::proto::TraceSummary;
use store_model::{SpanId, StatusCode, UnixNanos};

use super::client::decision_word;
use super::table::{self, Table};

/// A line deeper than this is not indented further.
const DEPTH_MAX: usize = 40;

struct Node {
    id: SpanId,
    parent: SpanId,
    start: UnixNanos,
    duration_ns: u64,
    service: String,
    operation: String,
    kind: &'static str,
    is_error: bool,
}

/// Draws the spans of `otlp`.
pub(super) fn render(otlp: &[u8], summary: &TraceSummary) -> Result<String, String> {
    let mut nodes = Vec::new();
    let result = visit_spans(otlp, &mut |_, span, _| {
        nodes.push(Node {
            id: span.span_id,
            parent: span.parent_span_id,
            start: span.start,
            duration_ns: span.duration_ns,
            service: String::from_utf8_lossy(span.service).into_owned(),
            operation: String::from_utf8_lossy(span.operation).into_owned(),
            kind: span.kind.as_str(),
            is_error: span.status == StatusCode::Error,
        });
    });
    result.map_err(|error| format!("the trace cannot be read: {error}"))?;
    nodes.sort_by_key(|node| (node.start, node.id));
    let mut text = format!(
        "trace {}  {} spans, {} errors, {}, began {} UTC\nkept for: {}{}, stands for {} trace(s)\n\n",
        table::hex(&summary.trace_id),
        summary.span_count,
        summary.error_count,
        table::duration(summary.duration_nano),
        table::time(summary.start_unix_nano),
        decision_word(summary.decision),
        if summary.complete { "" } else { " (incomplete: more spans may come)" },
        summary.adjusted_count.round(),
    );
    let mut table = Table::default();
    table.row(["DURATION", "AT", "SERVICE", "SPAN"].map(str::to_owned));
    for (depth, index) in order(&nodes) {
        let node = &nodes[index];
        let offset = node.start.0.saturating_sub(summary.start_unix_nano);
        let mark = if node.is_error { "  ERROR" } else { "" };
        let indent = "  ".repeat(depth.min(DEPTH_MAX));
        table.row([
            table::duration(node.duration_ns),
            format!("+{}", table::duration(offset)),
            node.service.clone(),
            format!("{indent}{} ({}){mark}", node.operation, node.kind),
        ]);
    }
    text.push_str(&table.render());
    Ok(text)
}

/// The span above each. Client and server may share an id, as Zipkin lets them: then the server stands below the client,
/// and what either of them called below the server.
fn parents(nodes: &[Node]) -> Vec<Option<usize>> {
    let mut sharing: HashMap<SpanId, Vec<usize>> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        sharing.entry(node.id).or_default().push(index);
    }
    // Clocks differ; who called whom does not.
    sharing.values_mut().for_each(|twins| twins.sort_by_key(|&index| nodes[index].kind == "server"));
    let mut parents = vec![None; nodes.len()];
    for twins in sharing.values() {
        let [first, rest @ ..] = &twins[..] else { continue };
        let Node { id, parent, .. } = &nodes[*first];
        let above = sharing.get(parent).filter(|_| !parent.is_zero() && parent != id);
        parents[*first] = above.and_then(|above| above.last().copied());
        rest.iter().for_each(|&index| parents[index] = Some(*first));
    }
    parents
}

/// Depth-first with an own stack: a trace may be deeper than ours. Spans in a cycle, and those without a known parent,
/// stand at the top.
fn order(nodes: &[Node]) -> Vec<(usize, usize)> {
    let mut children = vec![Vec::new(); nodes.len()];
    let mut tops = Vec::new();
    for (index, parent) in parents(nodes).into_iter().enumerate() {
        parent.map_or(&mut tops, |parent| &mut children[parent]).push(index);
    }
    let mut seen = vec![false; nodes.len()];
    let mut lines = Vec::with_capacity(nodes.len());
    for top in tops.into_iter().chain(0..nodes.len()) {
        let mut stack = vec![(0, top)];
        while let Some((depth, index)) = stack.pop() {
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            lines.push((depth, index));
            stack.extend(children[index].iter().rev().map(|&child| (depth + 1, child)));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u8, parent: u8, start: u64) -> Node {
        let (service, operation) = (String::new(), String::new());
        let (id, parent, start) = (SpanId([id; 8]), SpanId([parent; 8]), UnixNanos(start));
        Node { id, parent, start, duration_ns: 1, service, operation, kind: "server", is_error: false }
    }

    #[test]
    fn children_stand_below_their_parent_and_orphans_and_cycles_at_the_top() {
        let nodes = [
            node(1, 0, 0),
            node(2, 1, 1),
            node(3, 2, 2),
            node(4, 1, 3),
            node(5, 99, 4),
            node(6, 7, 5),
            node(7, 6, 6),
        ];
        let lines = order(&nodes);
        assert_eq!(lines, [(0, 0), (1, 1), (2, 2), (1, 3), (0, 4), (0, 5), (1, 6)]);
    }

    #[test]
    fn a_server_that_shares_its_clients_id_stands_below_it_with_what_it_called() {
        let client = |node| Node { kind: "client", ..node };
        // The server's clock is behind, so it seems to begin before it was called.
        let nodes = [node(1, 0, 0), node(2, 1, 1), client(node(2, 1, 2)), client(node(3, 2, 3))];
        assert_eq!(order(&nodes), [(0, 0), (1, 2), (2, 1), (3, 3)]);
        // Both without a parent, as when the call is all there is.
        let nodes = [client(node(1, 0, 0)), node(1, 0, 1)];
        assert_eq!(order(&nodes), [(0, 0), (1, 1)]);
    }
}
