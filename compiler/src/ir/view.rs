//! The graph as petgraph sees it: nodes, and an edge from each value's definition to its uses.

use petgraph::algo::toposort;
use petgraph::dot::{Config, Dot};
use petgraph::graph::{DiGraph, NodeIndex};

use super::{Graph, NodeId, ValueId};

impl Graph {
    /// One petgraph node per node, in program order (so `NodeIndex` equals [`NodeId`]), one edge per use of a value.
    pub fn to_petgraph(&self) -> DiGraph<NodeId, ValueId> {
        let mut out = DiGraph::with_capacity(self.nodes.len(), self.nodes.len());
        for i in 0..self.nodes.len() {
            out.add_node(NodeId(i as u32));
        }
        let definitions = self.definitions();
        for (i, node) in self.nodes.iter().enumerate() {
            for v in node.operands.iter().filter_map(|o| o.value()) {
                if let Some(Some(from)) = definitions.get(v.0 as usize) {
                    out.add_edge(NodeIndex::new(from.0 as usize), NodeIndex::new(i), v);
                }
            }
        }
        out
    }

    /// An order in which every node stands after the nodes it uses; `Err`: a node of a cycle.
    pub fn topological_order(&self) -> Result<Vec<NodeId>, NodeId> {
        let view = self.to_petgraph();
        match toposort(&view, None) {
            Ok(order) => Ok(order.into_iter().map(|i| view[i]).collect()),
            Err(cycle) => Err(view[cycle.node_id()]),
        }
    }

    /// Graphviz: ops with their labels, edges with the types of the values that flow.
    pub fn to_dot(&self) -> String {
        let view = self.to_petgraph();
        let node = |_: &DiGraph<NodeId, ValueId>, (_, id): (NodeIndex, &NodeId)| {
            let node = self.node(*id);
            let text = format!("{}\n{}", node.op.row().name, node.label);
            format!("label={text:?}")
        };
        let edge = |_: &DiGraph<NodeId, ValueId>, e: petgraph::graph::EdgeReference<'_, ValueId>| {
            format!("label={:?}", self.show_type(self.ty(*e.weight())))
        };
        let dot = Dot::with_attr_getters(&view, &[Config::NodeNoLabel, Config::EdgeNoLabel], &edge, &node);
        format!("{dot:?}")
    }
}
