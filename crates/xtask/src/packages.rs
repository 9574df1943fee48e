//! System packages, through apt on Debian and Ubuntu; on other systems the error says what to install.
//!
//! Every installation prints what is installed and why. Rejected: other package managers, because each has other
//! package names, and an untested command run as root is worse than an error message.

use crate::process;
use anyhow::{Result, bail};
use std::fs;
use std::io::IsTerminal;
use std::process::{Command, Stdio};

/// Installs Debian packages; `why` completes the sentence "Installing … : why".
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    let list = packages.join(" ");
    if !is_debian() || process::find_program("apt-get").is_none() {
        bail!(
            "missing: {why}. Expected a Debian or Ubuntu system to install it on, found another one; remedy: install what these Debian packages hold: {list}"
        );
    }
    let by_hand = format!("apt-get update && apt-get install -y {list}");
    let prefix =
        privilege().map_err(|reason| anyhow::anyhow!("missing: {why}. {reason}; remedy: run as root: {by_hand}"))?;
    eprintln!("Installing {list}: {why}");
    let update = process::run(&mut apt(prefix, &["update", "-qq"]));
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend_from_slice(packages);
    if let Err(error) = process::run(&mut apt(prefix, &arguments)) {
        let first = update.err().map_or_else(String::new, |error| format!(" (before it: {error})"));
        bail!("{error}{first}; remedy: run as root: {by_hand}");
    }
    Ok(())
}

fn apt(prefix: Option<&str>, arguments: &[&str]) -> Command {
    let mut command = Command::new(prefix.unwrap_or("apt-get"));
    if prefix.is_some() {
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    } else {
        command.env("DEBIAN_FRONTEND", "noninteractive");
    }
    command.args(arguments).stdout(Stdio::null());
    command
}

/// The prefix of a command that needs root: nothing for root itself, `sudo` if it can work.
fn privilege() -> Result<Option<&'static str>, String> {
    let is_root = process::capture(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if is_root {
        return Ok(None);
    }
    if process::find_program("sudo").is_none() {
        return Err("This user is not root, and sudo is not installed".to_owned());
    }
    let silent = process::succeeds(Command::new("sudo").args(["-n", "true"]));
    if silent || std::io::stdin().is_terminal() {
        return Ok(Some("sudo"));
    }
    Err("This user is not root, and sudo wants a password that cannot be asked for without a terminal".to_owned())
}

fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| names_debian(&text))
}

/// Whether an os-release file is of Debian or of a derived system.
fn names_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|value| value.trim_matches('"').split(' '))
        .any(|name| name == "debian" || name == "ubuntu")
}

#[cfg(test)]
mod tests {
    use super::names_debian;

    #[test]
    fn knows_debian_and_its_children() {
        assert!(names_debian("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"));
        assert!(names_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(names_debian("ID=pop\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!names_debian("ID=fedora\nVERSION_ID=42\n"));
        assert!(!names_debian("ID=\"rhel\"\nID_LIKE=\"fedora\"\nHOME_URL=debian\n"));
    }
}
