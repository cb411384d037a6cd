use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why there is no fast path, or none over this interface: the pump carries on alone.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("this kernel has no BPF system call (CONFIG_BPF_SYSCALL)")]
    NoBpf,
    #[error("this kernel has no tcx: Linux 6.6 or newer is needed")]
    NoTcx,
    #[error("not permitted: CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed")]
    NotPermitted,
    #[error("interface {index} does not exist")]
    NoInterface { index: u32 },
    /// `kind` is an ARPHRD_* number (linux/if_arp.h).
    #[error(
        "interface {name} is of type {kind}; Ethernet-like ones (1) and some without a link header (512, 519, 65534) are supported"
    )]
    InterfaceType { name: String, kind: u16 },
    /// Another build of the program than this code knows, or a kernel that refuses it.
    #[error("{what}: {reason}")]
    Refused { what: &'static str, reason: String },
}

/// Why an entry was not installed; the flow stays with the pump.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("internal, external and remote endpoint are not of one family")]
    Families,
    #[error("the fast path is not attached to interface {0}")]
    NotAttached(u32),
    #[error("the next hop does not fit the interface: one with a link header needs one, another has none")]
    NextHop,
    #[error("an entry for these endpoints exists already")]
    Exists,
    #[error("all entries are in use")]
    Full,
    #[error("the kernel's flow table: {0}")]
    Table(#[source] io::Error),
}

impl Unavailable {
    pub(super) fn at_load(error: EbpfError) -> Self {
        match &error {
            EbpfError::MapError(error) => Self::at_map(error),
            // EACCES is the verifier's: the program reaches where it may not.
            EbpfError::ProgramError(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() != Some(libc::EACCES) =>
            {
                Self::of(io_error).unwrap_or_else(|| Self::refused("the kernel refuses the program", &error))
            }
            _ => Self::refused("the program's object is not usable", &error),
        }
    }

    pub(super) fn at_program(error: ProgramError) -> Self {
        Self::at_load(error.into())
    }

    pub(super) fn at_map(error: &MapError) -> Self {
        let io = match error {
            MapError::CreateError { io_error, .. } => Self::of(io_error),
            MapError::SyscallError(error) => Self::of(&error.io_error),
            _ => None,
        };
        io.unwrap_or_else(|| Self::refused("the kernel refuses a map", error))
    }

    pub(super) fn at_attach(error: ProgramError, index: u32) -> Self {
        let ProgramError::SyscallError(failed) = &error else { return Self::at_program(error) };
        match failed.io_error.raw_os_error() {
            // Every argument is valid, so it is the kind of attachment that the kernel does not know.
            Some(libc::EINVAL) => Self::NoTcx,
            Some(libc::ENODEV) => Self::NoInterface { index },
            _ => Self::of(&failed.io_error)
                .unwrap_or_else(|| Self::refused("the kernel refuses the attachment", &failed.io_error)),
        }
    }

    pub(super) fn refused(what: &'static str, reason: &(impl ToString + ?Sized)) -> Self {
        Self::Refused { what, reason: reason.to_string() }
    }

    fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::ENOSYS => Some(Self::NoBpf),
            libc::EPERM | libc::EACCES => Some(Self::NotPermitted),
            _ => None,
        }
    }
}

impl InstallError {
    pub(super) fn at_insert(error: MapError) -> Self {
        let error = match error {
            MapError::SyscallError(failed) => failed.io_error,
            other => io::Error::other(other),
        };
        match error.raw_os_error() {
            Some(libc::EEXIST) => Self::Exists,
            Some(libc::E2BIG) => Self::Full,
            _ => Self::Table(error),
        }
    }
}
