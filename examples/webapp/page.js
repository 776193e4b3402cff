// Keeps the list of places up to date, and leaves the page when its session has ended.
// Without this script, the page shows how things were when it was loaded.
let stream, retry;

function listen() {
	stream?.close();
	clearTimeout(retry);
	if (document.hidden) return; // over HTTP/1.1, browsers open few connections to a site
	stream = new EventSource("/events");
	stream.addEventListener("places", show);
	stream.addEventListener("ended", () => location.replace("/signedout"));
	stream.addEventListener("error", () => {
		// The browser connects again by itself, unless the answer was an error.
		if (stream.readyState === EventSource.CLOSED) retry = setTimeout(listen, 5000);
	});
}

function show(event) {
	const list = document.getElementById("list"), next = list.cloneNode(false);
	next.innerHTML = JSON.parse(event.data);
	if (next.isEqualNode(list)) return;
	const focused = document.activeElement.id;
	list.replaceWith(next);
	document.getElementById(focused)?.focus();
}

// The answer to the form says what has happened here.
document.addEventListener("submit", () => stream?.close());
document.addEventListener("visibilitychange", listen);
listen();
