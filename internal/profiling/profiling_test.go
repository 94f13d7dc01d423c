package profiling

import (
	"log/slog"
	"net/http"
	"testing"
)

var quiet = slog.New(slog.DiscardHandler)

func TestProfilesAreServedOnLoopbackOnlyAndWithoutTheCommandLine(t *testing.T) {
	for _, address := range []string{":6060", "0.0.0.0:0", "192.0.2.1:6060", "example.org:6060", "6060", "[::]:0"} {
		if _, _, err := Serve(address, quiet); err == nil {
			t.Errorf("%s: served", address)
		}
	}
	at, stop, err := Serve("127.0.0.1:0", quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	get := func(path, host string) int {
		req, _ := http.NewRequest(http.MethodGet, "http://"+at+path, nil)
		if host != "" {
			req.Host = host
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	for _, c := range []struct {
		path, host string
		want       int
	}{
		{"/debug/pprof/", "", 200}, {"/debug/pprof/heap", "", 200}, {"/debug/pprof/goroutine?debug=1", "", 200}, {"/debug/pprof/symbol", "", 200},
		{"/debug/pprof/cmdline", "", 404}, {"/metrics", "", 404},
		{"/debug/pprof/heap", "evil.example:80", 403}, {"/debug/pprof/profile?seconds=1", "evil.example:80", 403},
	} {
		if got := get(c.path, c.host); got != c.want {
			t.Errorf("%s (host %q): status %d, want %d", c.path, c.host, got, c.want)
		}
	}
}
