// The token: it comes in the fragment of a link, which no server and no log sees, and stays in this
// tab's own storage until the tab is closed.

const NAME = "dispatcher.token";

/** Takes the token of `#token=…` out of the address, if there is one; returns the tab's token. */
export function takeToken() {
  const match = /^#token=([A-Za-z0-9._~-]+)/.exec(location.hash);
  if (match) {
    sessionStorage.setItem(NAME, match[1]);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(NAME);
}

export function keepToken(token) {
  sessionStorage.setItem(NAME, token);
}

export function forgetToken() {
  sessionStorage.removeItem(NAME);
}

/** Why a token cannot be meant for this page, as far as it tells itself; the server has the say. */
export function faultOf(token) {
  let claims;
  try {
    claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return "This is not a token: three parts with dots between them are one.";
  }
  if (claims.role !== "admin") return `The console takes a token of the role admin; this one's is ${claims.role ?? "missing"}.`;
  if (claims.exp * 1000 < Date.now()) return "This token has expired.";
  return null;
}
