//! What the child may ask of the kernel: nothing but to read its orders, to answer and to end.

use super::HostError;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::os::fd::RawFd;

/// A filter that lets the child read `orders`, write `answers` and exit, and kills it at any other system call.
///
/// # Errors
/// [`HostError::Filter`]
pub fn filter(orders: RawFd, answers: RawFd) -> Result<BpfProgram, HostError> {
    let only = |fd: RawFd| {
        let same = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, fd as u64)?;
        Ok::<_, seccompiler::BackendError>(vec![SeccompRule::new(vec![same])?])
    };
    let rules = [
        (libc::SYS_read, only(orders)?),
        (libc::SYS_write, only(answers)?),
        (libc::SYS_exit_group, vec![]),
    ];
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}
