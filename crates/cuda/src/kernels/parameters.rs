//! What a kernel's source says of its parameters, and of who starts behind it.

use super::Module;

/// The parameter that tells a kernel who runs beside it; the last (`kernels/turn.cuh`).
const BESIDE: &str = "u32 beside";

/// Parameters with the lists of experts.
const LISTS: [&str; 3] = ["starts", "order", "chosen"];

/// What a kernel does with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parameter {
    /// A number, or memory that it reads.
    Read,
    /// Memory where it looks up what its blocks are for, before all else.
    Listed,
    /// Memory that it writes, and may read.
    Written,
    /// It tells who runs beside it.
    Beside,
}

impl Module {
    /// The parameters of one of its kernels; none where the source has no such kernel.
    pub(crate) fn parameters(self, entry: &str) -> Vec<Parameter> {
        let source = self.source();
        let heads = source.split("\nKERNEL").skip(1).filter_map(|text| text.split_once('{')).map(|(head, _)| head);
        let own = heads.filter_map(|head| head.split_once(&format!("{entry}("))).find(|(before, _)| is_end(before));
        let Some((_, list)) = own else { return vec![] };
        let list: String = list.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code)).collect();
        list.trim_end().trim_end_matches(')').split(',').map(parameter).collect()
    }

    /// Whether a kernel of it lets the next launch start before it waits for earlier work.
    pub(crate) fn starts_next(self) -> bool {
        matches!(
            self,
            Module::Norm | Module::Merge(..) | Module::Connect(..) | Module::LatentDecode(..) | Module::Arrive
        )
    }
}

/// Whether a name may begin behind this.
fn is_end(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn parameter(declared: &str) -> Parameter {
    let declared = declared.trim();
    match declared {
        BESIDE => Parameter::Beside,
        _ if declared.contains('*') && !declared.starts_with("const ") => Parameter::Written,
        _ if declared.rsplit(' ').next().is_some_and(|name| LISTS.contains(&name)) => Parameter::Listed,
        _ => Parameter::Read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_say_what_kernels_write() {
        use Parameter::{Beside, Listed, Read, Written};
        let expected = [vec![Read; 2], vec![Written; 4], vec![Read; 6], vec![Beside]].concat();
        let gate = Module::Elementwise.parameters("gate");
        assert_eq!(gate, expected);
        assert_eq!(Module::Elementwise.parameters("add"), [Written, Read, Read]);
        assert_eq!(Module::Elementwise.parameters("spin"), [Read]);
        assert_eq!(Module::Elementwise.parameters("ate"), []);
        // With comments between them.
        let arrive = Module::Arrive.parameters("arrive");
        assert_eq!((arrive.len(), arrive.iter().filter(|p| **p == Written).count()), (56, 10));
        for module in Module::all() {
            let is_product = matches!(module, Module::Codes(..) | Module::Wide(..));
            let lists = module.parameters(module.entries()[0]).iter().filter(|p| **p == Listed).count();
            assert!(!is_product || lists == 3, "{module}");
            for entry in module.entries() {
                let parameters = module.parameters(entry);
                let beside = parameters.iter().position(|p| *p == Beside);
                assert!(beside.is_none_or(|at| at + 1 == parameters.len()), "{module}: {entry}");
                // All but what holds the card up write something.
                assert!(parameters.contains(&Written) || *entry == "spin", "{module}: {entry}");
            }
        }
    }
    #[test]
    fn sources_say_who_lets_the_next_start_at_once() {
        for module in Module::all() {
            let says = module.parts().iter().any(|(_, text)| text.contains("let_next_start();"));
            assert_eq!(module.starts_next(), says, "{module}");
        }
    }
}
