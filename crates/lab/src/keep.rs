use std::fmt::Write;

use crate::enter;
use crate::internet::addresses::{MEDIA, SIGNALING, WEB};
use crate::{Lab, LabError, Run};

impl Run {
    /// Says on standard error how to enter the hosts and what to try, and returns when a signal such as Ctrl-C's comes.
    pub fn keep(&self) -> Result<(), LabError> {
        eprintln!("\n{}", self.lab.hints());
        enter::wait_for_signal()
    }
}

impl Lab {
    /// How to enter each host from another terminal, and what to try there.
    pub fn hints(&self) -> String {
        let net = &self.internet;
        let hosts = [&net.agent, &net.router, &net.core, &net.gateway, &net.signaling, &net.media, &net.web];
        let mut text =
            String::from("The lab stays up until Ctrl-C. To enter a host, from another terminal:\n");
        let user = enter::in_user_namespace();
        for host in hosts {
            let options = if user {
                format!("--user=/proc/{}/ns/user --preserve-credentials ", std::process::id())
            } else {
                String::new()
            };
            let path = host.netns_path();
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {:<10} nsenter {options}--net={} bash", host.name(), path.display());
        }
        let _ = write!(
            text,
            "\nTo try on the agent:\n  curl --cacert {} https://{SIGNALING}/          through the tunnel\n  curl --cacert {0} https://{WEB}/             directly\n  curl http://{MEDIA}:22/                        refused\n",
            self.directory.file("lab.pem").display()
        );
        if let Some(daemon) = &self.daemon {
            for command in ["status", "flows"] {
                let _ = writeln!(
                    text,
                    "  BREAKOUT_STATE_DIR={} {} {command}",
                    daemon.state_dir().display(),
                    daemon.exe().display()
                );
            }
        }
        text
    }
}
