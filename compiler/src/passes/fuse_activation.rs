//! `fuse-activation`: `silu` or `gelu` of a `linear` becomes the linear's activation.

use super::edit::{Edit, Links, linear_attrs, title};
use super::{PassContext, PassError, PassReport};
use crate::ir::{Graph, NodeId, Op, Operand};

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let links = Links::new(graph);
    let mut edit = Edit::default();
    for (i, node) in graph.nodes.iter().enumerate() {
        let act = match [(Op::Silu, "silu"), (Op::Gelu, "gelu")].into_iter().find(|(op, _)| *op == node.op) {
            Some((_, act)) => act,
            None => continue,
        };
        let linear = links.sole_maker(graph, node.operands[0], Op::Linear).and_then(|(id, linear)| {
            if linear.operands[2] != Operand::None {
                return Err("the linear's residual is added after its activation".into());
            }
            match linear.attrs.word("act") {
                "none" => Ok((id, linear)),
                other => Err(format!("the linear already has the activation {other}")),
            }
        });
        match linear {
            Ok((id, linear)) => {
                report.fire(title(linear), format!("linear + {act} -> linear{{act={act}}}"));
                let mut fused = linear.clone();
                fused.attrs = linear_attrs(act);
                fused.results = node.results.clone();
                edit.remove(id);
                edit.replace(NodeId(i as u32), vec![fused]);
            }
            Err(reason) => report.miss(title(node), reason),
        }
    }
    edit.apply(graph);
    Ok(report)
}
