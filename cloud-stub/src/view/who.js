// Says who is logged in and logs them out. Where nobody is asked, nothing is shown.
async function ask() {
  const response = await fetch("/api/me");
  // The page itself leads to the login, and back.
  if (response.status === 401) location.reload();
  return response.ok ? response.json() : {};
}

async function logOut() {
  await fetch("/logout", { method: "POST", headers: { "Hedge-Operate": "yes" } });
  location.assign("/login");
}

const me = await ask().catch(() => ({}));
document.documentElement.dataset.role = me.role;
if (me.name) {
  // What somebody signs with is their login.
  localStorage.setItem("who", me.name);
  const who = document.createElement("p");
  who.id = "me";
  who.append(`${me.name}, ${me.role}`);
  if (me.session) {
    const out = document.createElement("button");
    out.id = "log-out";
    out.type = "button";
    out.className = "link";
    out.textContent = "Log out";
    out.addEventListener("click", logOut);
    who.append(" · ", out);
  }
  document.querySelector("header").append(who);
}

// A session may have ended while the page was open.
document.addEventListener("unheard", () => ask().catch(() => {}));
