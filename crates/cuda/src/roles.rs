//! The roles of rows: a row's role picks the arithmetic of its projections, and nothing else does.

use std::{ops::Range, str::FromStr, sync::Arc};

use tessera_ops::Role;

/// Which arithmetic the rows of a prompt run in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Numerics {
    /// Rows of a prompt in that of 16-bit operands, others in that of codes.
    #[default]
    ByRole,
    /// All rows in that of codes: a prompt's row has the bits that a decoded row has.
    Uniform,
}

impl FromStr for Numerics {
    type Err = String;

    fn from_str(text: &str) -> Result<Numerics, String> {
        match text {
            "role" => Ok(Numerics::ByRole),
            "uniform" => Ok(Numerics::Uniform),
            _ => Err("there are role and uniform".to_owned()),
        }
    }
}

/// Neighbouring rows of one role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) role: Role,
    pub(crate) rows: Range<usize>,
}

/// The roles of a tensor's rows: runs that cover them in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roles(Arc<[Run]>);

impl Roles {
    pub(crate) fn of(roles: impl IntoIterator<Item = Role>) -> Roles {
        let mut runs: Vec<Run> = vec![];
        for (row, role) in roles.into_iter().enumerate() {
            match runs.last_mut().filter(|r| r.role == role) {
                Some(run) => run.rows.end = row + 1,
                None => runs.push(Run { role, rows: row..row + 1 }),
            }
        }
        Roles(runs.into())
    }

    /// Of `rows` rows that have one.
    pub(crate) fn all(role: Role, rows: usize) -> Roles {
        let runs = [Run { role, rows: 0..rows }];
        Roles(runs.into_iter().filter(|r| !r.rows.is_empty()).collect())
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.0
    }

    /// Of as many rows for each row.
    pub(crate) fn times(&self, count: usize) -> Roles {
        let wider = |r: &Run| Run { role: r.role, rows: r.rows.start * count..r.rows.end * count };
        Roles(self.0.iter().map(wider).filter(|r| !r.rows.is_empty()).collect())
    }

    /// Of the rows that are named.
    pub(crate) fn picked(&self, rows: &[u32]) -> Roles {
        let role =
            |row: &u32| self.0.iter().find(|r| r.rows.contains(&(*row as usize))).expect("a row has a role").role;
        Roles::of(rows.iter().map(role))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn each(roles: &Roles) -> Vec<Role> {
        roles.runs().iter().flat_map(|r| r.rows.clone().map(|_| r.role)).collect()
    }

    proptest! {
        #[test]
        fn runs_are_the_rows(prompts in prop::collection::vec(any::<bool>(), 0..40), picks in prop::collection::vec(0usize..40, 0..9)) {
            let rows: Vec<Role> = prompts.iter().map(|p| if *p { Role::Prefill } else { Role::Decode }).collect();
            let roles = Roles::of(rows.clone());
            prop_assert_eq!(each(&roles), rows.clone());
            prop_assert!(roles.runs().windows(2).all(|w| w[0].role != w[1].role && w[0].rows.end == w[1].rows.start));
            let repeated: Vec<Role> = rows.iter().flat_map(|r| [*r; 3]).collect();
            prop_assert_eq!(each(&roles.times(3)), repeated);
            let picks: Vec<u32> = picks.into_iter().filter(|p| *p < rows.len()).map(|p| p as u32).collect();
            let picked: Vec<Role> = picks.iter().map(|p| rows[*p as usize]).collect();
            prop_assert_eq!(each(&roles.picked(&picks)), picked);
            prop_assert_eq!(Roles::all(Role::Prefill, rows.len()).runs().len(), usize::from(!rows.is_empty()));
        }
    }
}
