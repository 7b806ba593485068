//! `schedule`: moves nodes down to their first use where that makes lifetimes shorter.
//!
//! Program order stays the rule. A node sinks when its results, kept for less long, weigh more than the operands that
//! have to be kept for longer. Selections and groups thus end up right before the modules that need them.

use super::edit::{Links, reorder, title};
use super::{PassContext, PassError, PassReport};
use crate::ir::{Graph, NodeId, Op, ValueId};
use crate::plan::Views;

pub(super) fn run(graph: &mut Graph, ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let links = Links::new(graph);
    let views = Views::new(graph);
    let users = users_through_views(graph, &views);
    let mut order = Order::new(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        let at = NodeId(i as u32);
        // Views cost nothing wherever they stand.
        if node.op == Op::Slice {
            continue;
        }
        let direct = node.results.iter().flat_map(|r| links.users(*r));
        let Some(first) = direct.copied().min_by_key(|user| order.place(*user)) else { continue };
        let kept: u64 = node.results.iter().map(|r| bytes(graph, ctx, *r)).sum();
        let mut operands: Vec<ValueId> = node.operands.iter().filter_map(|o| Some(views.base(o.value()?))).collect();
        operands.sort();
        operands.dedup();
        let dies_here = |v: &ValueId| {
            let others = users[v.0 as usize].iter().filter(|user| **user != at);
            !graph.is_output(*v) && others.map(|user| order.place(*user)).all(|place| place < order.place(first))
        };
        let extended: u64 = operands.iter().filter(|v| dies_here(v)).map(|v| bytes(graph, ctx, *v)).sum();
        if kept > extended && order.sink(at, first) {
            let (user, name) = (graph.node(first), node.op.row().name);
            report.fire(title(node), format!("{name} moves down to {} of {}", user.op.row().name, title(user)));
        }
    }
    report.fired.reverse();
    reorder(graph, &order.nodes.iter().map(|id| id.0 as usize).collect::<Vec<_>>());
    Ok(report)
}

/// For each base value, the nodes that read it or a view of it, by value id.
fn users_through_views(graph: &Graph, views: &Views) -> Vec<Vec<NodeId>> {
    let mut users = vec![Vec::new(); graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate().filter(|(_, n)| n.op != Op::Slice) {
        for v in node.operands.iter().filter_map(|o| o.value()) {
            users[views.base(v).0 as usize].push(NodeId(i as u32));
        }
    }
    users
}

fn bytes(graph: &Graph, ctx: &PassContext, value: ValueId) -> u64 {
    let ty = graph.ty(value);
    graph.max_dim(ty.rows(), ctx.chunk_tokens).saturating_mul(ty.cols() * ty.dtype.bytes())
}

/// A permutation of the nodes and its inverse. A node that sank stands in a block that ends with its user.
struct Order {
    nodes: Vec<NodeId>,
    places: Vec<usize>,
    /// By node: the user that it sank to.
    users: Vec<Option<NodeId>>,
    /// By node: length of the block that it ends.
    blocks: Vec<usize>,
}

impl Order {
    fn new(nodes: usize) -> Self {
        Self {
            nodes: (0..nodes as u32).map(NodeId).collect(),
            places: (0..nodes).collect(),
            users: vec![None; nodes],
            blocks: vec![1; nodes],
        }
    }

    fn place(&self, id: NodeId) -> usize {
        self.places[id.0 as usize]
    }

    /// Moves `id` down to the front of its user's block, whose other nodes come later in the program. Whether it moved.
    fn sink(&mut self, id: NodeId, user: NodeId) -> bool {
        let (from, to) = (self.place(id), self.place(user) + 1 - self.blocks[user.0 as usize]);
        self.nodes[from..to].rotate_left(1);
        for place in from..to {
            self.places[self.nodes[place].0 as usize] = place;
        }
        self.users[id.0 as usize] = Some(user);
        let mut grown = Some(user);
        while let Some(node) = grown {
            self.blocks[node.0 as usize] += 1;
            grown = self.users[node.0 as usize];
        }
        to > from + 1
    }
}
