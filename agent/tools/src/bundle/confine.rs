//! What a process gives up, for good, before it runs a model that nobody here has run before.
//!
//! Limits of memory, time and file size are the kernel's `setrlimit`. System calls are refused by a filter: a model computes, so
//! it needs no network, no other program, and nothing of the file system but reading.

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

/// What no model needs. Each fails with `EPERM`, which a library reports like any other failure.
const REFUSED: &[libc::c_long] = &[
    // The network, and other processes.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // Changing files. (What is open already cannot grow: the size of files is limited.)
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    // The system itself.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_clock_settime,
];

/// What these were called before they had a folder to begin at, where this processor still has them.
#[cfg(target_arch = "x86_64")]
const REFUSED_OF_OLD: &[libc::c_long] = &[
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_creat,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_OF_OLD: &[libc::c_long] = &[libc::SYS_renameat];

/// For all threads of this process and what they start.
pub(super) fn confine(memory_bytes: u64, processor_s: u64) -> Result<(), String> {
    for (resource, most) in
        [(Resource::As, memory_bytes), (Resource::Cpu, processor_s), (Resource::Core, 0), (Resource::Fsize, 0)]
    {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).map_err(|error| format!("its trial cannot be limited: {error}"))?;
    }
    filter().and_then(|filter| apply_filter_all_threads(&filter)).map_err(|error| {
        format!("its trial cannot be confined: {error}; the kernel and the service must allow `seccomp`")
    })
}

fn filter() -> Result<BpfProgram, seccompiler::Error> {
    // `SYS_*` are narrower on some processors.
    #[allow(clippy::useless_conversion, reason = "not on all processors")]
    let rules = REFUSED.iter().chain(REFUSED_OF_OLD).map(|call| (i64::from(*call), Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::{TcpListener, UdpSocket};
    use std::process::Command;

    #[test]
    fn a_model_on_trial_reaches_no_network_no_program_and_no_file_but_to_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        std::fs::write(&file, "text").expect("written");
        let at = file.clone();
        // The filter of one thread is its own.
        let tried = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter().expect("a filter")).expect("applied");
            assert_eq!(std::fs::read_to_string(&at).expect("read"), "text");
            assert_eq!(std::thread::spawn(|| 2 + 2).join().expect("a thread of it"), 4);
            [
                TcpListener::bind("127.0.0.1:0").map(drop),
                UdpSocket::bind("127.0.0.1:0").map(drop),
                Command::new("true").status().map(drop),
                std::fs::remove_file(&at),
                std::fs::rename(&at, at.with_extension("moved")),
                std::fs::create_dir(at.with_extension("folder")),
            ]
            .map(|outcome| outcome.map_err(|error| error.kind()))
        });
        assert_eq!(tried.join().expect("tried"), [const { Err(ErrorKind::PermissionDenied) }; 6]);
        std::fs::remove_file(&file).expect("others may");
    }
}
