//! Which instructions belong to routing, and to which stage of it.

use lapidary_npu_isa::{Instruction, Op, Program};

macro_rules! stages {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// A stage of routing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum RoutingStage {
            $($(#[doc = $doc])* $variant,)*
        }

        impl RoutingStage {
            /// Every one, in the order in which a token meets them.
            pub const ALL: &[RoutingStage] = &[$(RoutingStage::$variant),*];

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(RoutingStage::$variant => $name,)*
                }
            }

            /// What belongs to it.
            pub const fn about(self) -> &'static str {
                match self {
                    $(RoutingStage::$variant => concat!($($doc),*),)*
                }
            }
        }
    };
}

stages! {
    /// All of the token router: ops `token_router.…` and `domains`.
    TokenRouter = "token_router",
    /// Scores of modules: ops `….scar.…` other than the selection.
    Scores = "scores",
    /// Selection: ops `….scar.select`, and the selections of the routing unit wherever they stand.
    Select = "select",
    /// Whom a token attends to: ops `….attn.cluster`, and `r.append` and `r.admit` wherever they stand.
    Cluster = "cluster",
    /// Sorting tokens by module: ops `….modules.group`, and `r.group` and `r.compact` wherever they stand.
    Group = "group",
    /// Going through modules, gathering their tokens: `lds`, `skip_if_zero`, `v.gather` and `load.rows` of an op of modules.
    Gather = "gather",
    /// Adding results to their tokens: `v.scatter_add`, `store.rows` and `store.add_rows` of an op of modules.
    Scatter = "scatter",
}

/// What a label says of its instructions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Labelled {
    Stage(RoutingStage),
    /// An op of modules: work, and some routing.
    Modules,
    Nothing,
}

fn labelled(name: &str, has_module: bool) -> Labelled {
    // Behind `layers.3.`, but not behind `token_router.layers.3.`.
    let behind = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, rest)| rest);
    let is = |op: &str| behind == op || behind.strip_prefix(op).is_some_and(|rest| rest.starts_with('.'));
    match () {
        () if is("token_router") || is("domains") => Labelled::Stage(RoutingStage::TokenRouter),
        () if is("scar.select") => Labelled::Stage(RoutingStage::Select),
        () if is("scar") => Labelled::Stage(RoutingStage::Scores),
        () if is("attn.cluster") => Labelled::Stage(RoutingStage::Cluster),
        () if is("modules.group") => Labelled::Stage(RoutingStage::Group),
        () if is("modules") || has_module => Labelled::Modules,
        () => Labelled::Nothing,
    }
}

fn of_op(op: &Op, labelled: Labelled) -> Option<RoutingStage> {
    match (labelled, op) {
        (Labelled::Stage(stage), _) => Some(stage),
        (_, Op::TopK(_) | Op::Threshold(_) | Op::TopP(_) | Op::ExpertChoice(_) | Op::Bidirectional(_)) => {
            Some(RoutingStage::Select)
        }
        (_, Op::Group(_) | Op::Compact(_)) => Some(RoutingStage::Group),
        (_, Op::Append(_) | Op::Admit(_)) => Some(RoutingStage::Cluster),
        (Labelled::Modules, Op::Lds(_) | Op::SkipIfZero(_) | Op::VGather(_) | Op::LoadRows(_)) => {
            Some(RoutingStage::Gather)
        }
        (Labelled::Modules, Op::VScatterAdd(_) | Op::StoreAddRows(_) | Op::StoreRows(_)) => Some(RoutingStage::Scatter),
        (Labelled::Modules | Labelled::Nothing, _) => None,
    }
}

/// The stage of each instruction.
pub(crate) fn stages(program: &Program) -> Vec<Option<RoutingStage>> {
    let mut labels = program.op_labels.iter().peekable();
    let mut now = Labelled::Nothing;
    let stage = |(at, instruction): (usize, &Instruction)| {
        while let Some(label) = labels.next_if(|label| label.at as usize <= at) {
            now = labelled(&label.name, label.module.is_some());
        }
        of_op(&instruction.op, now)
    };
    program.instructions.iter().enumerate().map(stage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_what_is_routing() {
        let stage = |name| match labelled(name, false) {
            Labelled::Stage(stage) => stage.name(),
            Labelled::Modules => "modules",
            Labelled::Nothing => "",
        };
        assert_eq!(stage("token_router.layers.0.attn.q"), "token_router");
        assert_eq!(stage("domains"), "token_router");
        assert_eq!(stage("layers.3.scar.query"), "scores");
        assert_eq!(stage("layers.3.scar.scores"), "scores");
        assert_eq!(stage("layers.3.scar.select"), "select");
        assert_eq!(stage("layers.13.attn.cluster"), "cluster");
        assert_eq!(stage("layers.3.modules.group"), "group");
        assert_eq!([stage("layers.3.modules"), stage("layers.3.modules.add"), stage("modules")], ["modules"; 3]);
        assert_eq!([stage("layers.3.attn"), stage("layers.3"), stage(""), stage("scarf"), stage("embed")], [""; 5]);
    }
}
