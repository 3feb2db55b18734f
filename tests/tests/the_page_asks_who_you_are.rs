//! The login in a real browser: by keyboard, on a desk and on a phone, in light and dark; what each role sees; the end of
//! a session; no complaint of the browser, and nothing serious that axe-core finds.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hedge_tests::browser::{Browser, PHONE_WIDTH};
use hedge_tests::certificates::Authority;
use hedge_tests::{Cloud, CloudSetup, address, places, skip};
use serde_json::Value;
use tempfile::TempDir;

const ENTER: &str = "\u{e007}";
const TAB: &str = "\u{e004}";

const PASSWORD: &str = "correct horse";

#[test]
fn a_person_logs_in_by_keyboard_and_what_they_had_open_ends_with_the_logout() -> Result<()> {
    if !skip::has_browser() {
        return Ok(());
    }
    let dir = TempDir::new()?;
    let cloud = guarded_cloud(dir.path())?;
    let browser = Browser::start(dir.path())?;
    let page = cloud.dashboard();
    ensure!(page.starts_with("https://"), "{page}");

    // Led to the login, with the focus in its first field.
    browser.open(&format!("{page}/cases?order=newest"))?;
    browser.wait_until("location.pathname === '/login' && document.activeElement?.id === 'name'")?;
    browser.press(&format!("ann{TAB}wrong horse{ENTER}"))?;
    browser.wait_until("document.getElementById('said')?.textContent.includes('do not belong together')")?;
    browser.press(&format!("ann{TAB}{PASSWORD}{ENTER}"))?;
    // And back to where they wanted to be.
    browser.wait_until("location.pathname === '/cases' && location.search === '?order=newest'")?;
    browser.wait_until("document.getElementById('me')?.textContent.includes('ann, reviewer')")?;
    ensure!(browser.look("return document.cookie")? == "", "no script sees the session");

    // The browser says a refused request in its log, which is the failed login.
    let complaints = browser.complaints()?;
    ensure!(complaints.iter().all(|one| one.contains("401")), "the browser complains: {complaints:?}");
    // Nobody sees a form that their role may not use.
    sees(&browser, page, "reviewer", &["word"])?;
    browser.look("document.getElementById('log-out').focus()")?;
    browser.press(ENTER)?;
    browser.wait_until("location.pathname === '/login'")?;
    browser.press(&format!("vic{TAB}{PASSWORD}{ENTER}"))?;
    browser.wait_until("location.pathname !== '/login'")?;
    sees(&browser, page, "viewer", &[])?;
    browser.look("document.getElementById('log-out').click()")?;
    browser.wait_until("location.pathname === '/login'")?;
    browser.open(&format!("{page}/cases"))?;
    browser.wait_until("location.pathname === '/login'")?;
    let elsewhere: Vec<_> = browser.requests()?.into_iter().filter(|url| !is_ours(url, page)).collect();
    ensure!(elsewhere.is_empty(), "requests elsewhere: {elsewhere:?}");
    Ok(())
}

#[test]
fn the_login_can_be_used_by_everybody() -> Result<()> {
    if !skip::has_browser() {
        return Ok(());
    }
    let Some(axe) = places::axe() else {
        skip::skipped("axe-core is not here; `cargo xtask test` fetches it and sets HEDGETEST_AXE");
        return Ok(());
    };
    let axe = std::fs::read_to_string(axe)?;
    let dir = TempDir::new()?;
    let cloud = guarded_cloud(dir.path())?;
    let browser = Browser::start(dir.path())?;
    let page = cloud.dashboard();
    let mut found = Vec::new();
    for (scheme, width) in [("light", 1300), ("dark", 1300), ("light", PHONE_WIDTH), ("dark", PHONE_WIDTH)] {
        browser.appear(scheme, width)?;
        browser.open(&format!("{page}/login"))?;
        browser.wait_until("document.activeElement?.id === 'name'")?;
        let serious = findings(&browser, &axe)?;
        found.extend(serious.into_iter().map(|what| format!("{scheme} {width}: {what}")));
        let wide = browser.look("return document.scrollingElement.scrollWidth")?;
        if wide.as_u64() > Some(width.into()) {
            found.push(format!("{wide} pixels wide on a screen of {width}"));
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    let complaints = browser.complaints()?;
    ensure!(complaints.is_empty(), "the browser complains: {complaints:?}");
    Ok(())
}

/// Of what changes something, exactly this is shown to whoever has this role.
fn sees(browser: &Browser, page: &str, role: &str, forms: &[&str]) -> Result<()> {
    let of_pages = [
        ("/cases/hall.0000000000000001.1", &["word", "delete"][..]),
        ("/devices/hall", &["editor", "commands"]),
        ("/fleet", &["wanted"]),
    ];
    for (path, all) in of_pages {
        browser.open(&format!("{page}{path}"))?;
        browser.wait_until(&format!("document.documentElement.dataset.role === '{role}'"))?;
        for form in all {
            // Whether it would be there with something in it.
            let shown = browser.look(&format!(
                "const form = document.getElementById('{form}'); form.append('x'); return form.checkVisibility()"
            ))?;
            ensure!(shown == forms.contains(form), "{role}: {form} of {path}: {shown}");
        }
    }
    Ok(())
}

fn is_ours(url: &str, page: &str) -> bool {
    ["data:", "chrome:", page].iter().any(|own| url.starts_with(own))
}

/// Whatever axe-core finds that keeps people out: of a page so small, all of it.
fn findings(browser: &Browser, axe: &str) -> Result<Vec<String>> {
    browser.look(axe)?;
    let found = browser.look_later(
        "axe.run({ resultTypes: ['violations'] }).then(({ violations }) => done(violations
            .filter(({ impact }) => impact !== 'minor')
            .map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 160)).slice(0, 3).join(' | ')}`)),
            (error) => done([`axe-core: ${error}`]))",
    )?;
    Ok(found.as_array().context("a list")?.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// With TLS and two users.
fn guarded_cloud(dir: &Path) -> Result<Cloud> {
    let listen = address::own(8080);
    let identity = Authority::new(dir)?.server(listen.ip())?;
    let users = dir.join("users.json");
    for (name, role) in [("ann", "reviewer"), ("vic", "viewer")] {
        let mut adding = Command::new(places::program("hedge-cloud")?);
        adding.args(["user", "add", name, "--role", role, "--users"]).arg(&users);
        let mut adding = adding.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        adding.stdin.take().context("a pipe")?.write_all(PASSWORD.as_bytes())?;
        ensure!(adding.wait()?.success(), "no user was added");
    }
    let mut setup = CloudSetup { listen, ..CloudSetup::embedded(&[]) };
    let files = [("--users", &users), ("--page-cert", &identity.certificate), ("--page-key", &identity.key)];
    setup.more.extend(files.into_iter().flat_map(|(option, file)| [option.to_owned(), file.display().to_string()]));
    Cloud::start(dir, &setup)
}
