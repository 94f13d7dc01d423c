package streamcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
	"github.com/levada-io/levada/stream/streammetrics"
)

// Each bad input has one error, which says what was expected.
func TestStreamBadInput(t *testing.T) {
	dir := t.TempDir()
	store := filepath.Join(dir, "jobs.db")
	file := filepath.Join(dir, "lines")
	if err := os.WriteFile(file, []byte("one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := levada(t, "stream", "submit", "users", "--id", "known", "--store", store); o.Code != 0 {
		t.Fatal(o)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"submit", 2, "the name of one stream"},
		{"submit a b", 2, "the name of one stream"},
		{"submit a --on-bad skip", 2, "quarantine or halt"},
		{"submit a --not-before soon", 2, "such as 10m"},
		{"submit a --max-bad -2", 2, "-1 allows none"},
		{"submit a --query x --query-file y", 2, "exclude each other"},
		{"submit a --query-file " + dir + "/none", 2, "no such file"},
		{"submit a --notifier smoke", 2, "an amqp:// or a nats:// URL"},
		{"submit a --notifier notify", 2, "needs a Postgres store"},
		{"list --store " + dir + "/none.db", 1, "there is no job store at"},
		{"list --store " + dir, 1, "not a regular file"},
		{"list --store mysql://x", 2, "postgres:// URL"},
		{"list --store=", 2, "--store is empty"},
		{"list --state gone", 2, "ready, running, paused"},
		{"list -o yaml", 2, "text or json"},
		{"show", 2, "name the job"},
		{"show a b", 2, "name the job"},
		{"show nobody", 1, "no such job"},
		{"pause", 2, "name the job"},
		{"resume known", 1, "not possible in the job's state"},
		{"retry known", 1, "not possible in the job's state"},
		{"retry --all known", 2, "goes with no ids"},
		{"retry --reason NO_PROGRESS known", 2, "need --all"},
		{"retry --all --reason gone", 2, "NO_PROGRESS"},
		{"work --stream a --no-progress -1s", 2, "never"},
		{"work --stream a --denied-grace soon", 2, "24h"},
		{"work", 2, "--stream is missing"},
		{"work --stream =x", 2, "NAME=TABLE"},
		{"work --stream x=", 2, "NAME=TABLE"},
		{"work --stream a --stream a=b", 2, "given twice"},
		{"work --stream a=levada_job", 2, "are taken"},
		{"work --stream a-b", 2, "is not a table name"},
		{"work --stream a=b --print", 2, "there is no table"},
		{"work --stream a --print --exec cat", 2, "exclude each other"},
		{"work --stream a --jobs 0", 2, "at least 1"},
		{"work --stream a --lease 10ms", 2, "at least 1s"},
		{"work --stream a --ca " + file, 2, "no certificate"},
		{"work --stream a --ca " + dir + "/none", 2, "--ca: open"},
		{"work --stream a --tls-cert " + file, 2, "go together"},
		{"work --stream a --tls-key " + file, 2, "go together"},
		{"work --stream a --tls-cert " + dir + "/none --tls-key " + file, 2, "--tls-cert: open " + dir + "/none: no such file or directory: expected a PEM file"},
		{"work --stream a --tls-cert " + file + " --tls-key " + dir + "/none", 2, "--tls-key: open " + dir + "/none: no such file or directory: expected a PEM file"},
		{"work --stream a --tls-cert " + file + " --tls-key " + file, 2, "expected PEM files of a certificate and its private key"},
		{"work --stream a -o yaml", 2, "auto, table, text or json"},
		{"serve", 2, "nothing to serve"},
		{"serve --file x", 2, "NAME=PATH"},
		{"serve --file x=" + dir + "/none", 2, "no such file"},
		{"serve --table a=b", 2, "needs --postgres"},
		{"serve --postgres postgres://x", 2, "needs --table"},
		{"serve --postgres postgres://x --table a=b", 2, "exactly one of --horizon"},
		{"serve --postgres postgres://x --table a=b --static --snapshot", 2, "exactly one of --horizon"},
		{"serve --file x=" + file + " --snapshot", 2, "are for --table"},
		{"serve --file x=" + file + " --tls-cert c", 2, "go together"},
		{"serve --file x=" + file + " --tls-cert " + file + " --tls-key " + file, 2, "expected PEM files of a certificate and its private key"},
		{"serve --file x=" + file + " --tls-client-ca " + file, 2, "needs --tls-cert"},
		{"serve --file x=" + file + " --listen nowhere", 1, "--listen"},
		{"quarantine list", 2, "name the job"},
		{"quarantine show known", 2, "the number of one record"},
		{"quarantine show known x", 2, "is not a record number"},
		{"quarantine show known 0", 2, "is not a record number"},
		{"quarantine show known 5", 1, "is not in quarantine"},
		{"quarantine replay known", 2, "or --all"},
		{"quarantine drop known 1 --all", 2, "or --all"},
		{"quarantine list known --state gone", 2, "waiting, replay"},
		{"verify known", 2, "--target"},
		{"verify known --offline --tls-cert " + file, 2, "go together"},
		{"verify known --offline --table none", 2, "no such table"},
		{"demo fire", 2, "panic, cut, restart"},
		{"demo --users 5", 2, "1000 to"},
		{"demo --store x.db", 2, "postgres:// URL"},
		{"watch --kubeconfig " + dir + "/none", 2, "kubeconfig"},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := append([]string{"stream"}, strings.Fields(c.args)...)
			if name := args[1]; name != "serve" && name != "demo" && !strings.Contains(c.args, "--store") {
				args = append(args, "--store", store)
			}
			o := levada(t, args...)
			if o.Code != c.code || !strings.Contains(o.Stderr, c.want) || strings.Count(strings.TrimSpace(o.Stderr), "\n") > 0 {
				t.Errorf("exit code %d, want %d with one line that says %q:\n%s", o.Code, c.code, c.want, o.Stderr)
			}
		})
	}
}

// What a person does with jobs, without a worker.
func TestStreamJobs(t *testing.T) {
	store := filepath.Join(t.TempDir(), "jobs.db")
	t.Setenv("LEVADA_STORE", store)
	ok := func(args ...string) string {
		t.Helper()
		o := levada(t, append([]string{"stream"}, args...)...)
		if o.Code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, o.Code, o.Stderr)
		}
		return o.Stdout
	}
	first := strings.TrimSpace(ok("submit", "users", "--dedupe-key", "k", "--target", "dns:///shop:50051", "--query", `{"since":1}`, "--priority", "3", "--on-bad", "halt", "--max-bad", "-1", "--not-before", "1h"))
	again := levada(t, "stream", "submit", "users", "--dedupe-key", "k", "--target", "dns:///shop:50051", "--query", `{"since":1}`)
	if again.Code != 0 || strings.TrimSpace(again.Stdout) != first || !strings.Contains(again.Stderr, "there already") || !strings.Contains(again.Stderr, "it keeps --on-bad halt; it keeps --max-bad -1") {
		t.Errorf("the second submit gives %+v, and %s is there", again, first)
	}
	// A job for other records is not taken for the one that was asked for: its records would be missed.
	for _, other := range [][]string{{"users", "--dedupe-key", "k"}, {"users", "--dedupe-key", "k", "--target", "dns:///shop:50051", "--query", `{"since":2}`}, {"orders", "--id", first}} {
		o := levada(t, append([]string{"stream", "submit"}, other...)...)
		if o.Code != 1 || o.Stdout != "" || !strings.Contains(o.Stderr, first) || !strings.Contains(o.Stderr, "another job exists") || strings.Count(o.Stderr, "\n") != 1 {
			t.Errorf("submit %v: expected one error that names job %s: %+v", other, first, o)
		}
	}
	var status stream.Status
	if err := json.Unmarshal([]byte(ok("show", first[:6], "-o", "json")), &status); err != nil {
		t.Fatal(err)
	}
	if status.ID != first || status.Target != "dns:///shop:50051" || string(status.Query) != `{"since":1}` || status.Priority != 3 || status.OnBad != stream.HaltJob || status.MaxBad != stream.None ||
		time.Until(status.NotBefore) < 50*time.Minute || status.State != stream.Ready {
		t.Errorf("the job is %+v", status)
	}
	for _, step := range []struct{ command, next string }{
		{"pause", "levada stream resume " + first[:8]}, {"resume", "once its time has come"}, {"cancel", "levada stream retry " + first[:8]}, {"retry", "once its time has come"},
	} {
		ok(step.command, first)
		if text := ok("show", first); !strings.Contains(text, step.next) {
			t.Errorf("after %s, show does not say %q:\n%s", step.command, step.next, text)
		}
	}
	ok("submit", "orders", "--id", "second")
	if lines := strings.Split(strings.TrimSpace(ok("list")), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[1], "second") {
		t.Errorf("list shows %q", lines)
	}
	if text := ok("list", "--stream", "users", "-o", "json"); strings.Count(text, "\n") != 1 || !json.Valid([]byte(text)) {
		t.Errorf("list -o json shows %q", text)
	}
	if text := ok("list", "--state", "failed"); text != "no jobs\n" {
		t.Errorf("list of failed jobs shows %q", text)
	}
	if text := ok("quarantine", "list", first); text != "no quarantined records\n" {
		t.Errorf("quarantine list shows %q", text)
	}
}

func TestFindJobWantsEnoughOfTheID(t *testing.T) {
	store := filepath.Join(t.TempDir(), "jobs.db")
	for _, id := range []string{"abcd-1", "abcd-2", "abce"} {
		if o := levada(t, "stream", "submit", "users", "--id", id, "--store", store); o.Code != 0 {
			t.Fatal(o)
		}
	}
	if o := levada(t, "stream", "show", "abcd", "--store", store); o.Code != commandline.ExitUsage || !strings.Contains(o.Stderr, "2 jobs begin with") {
		t.Errorf("%+v", o)
	}
	if o := levada(t, "stream", "show", "abcd-2", "--store", store); o.Code != 0 {
		t.Errorf("%+v", o)
	}
	if o := levada(t, "stream", "show", "abc", "--store", store); o.Code != commandline.ExitUsage || !strings.Contains(o.Stderr, "3 jobs begin with") {
		t.Errorf("%+v", o)
	}
	if o := levada(t, "stream", "submit", "users", "--id", "xyz-1", "--store", store); o.Code != 0 {
		t.Fatal(o)
	}
	if o := levada(t, "stream", "show", "xyz", "--store", store); o.Code != commandline.ExitUsage || !strings.Contains(o.Stderr, "too short") {
		t.Errorf("three letters are too few to guess: %+v", o)
	}
}

func TestScreenKeepsTheTableBelow(t *testing.T) {
	var out bytes.Buffer
	s := &commandline.Screen{Out: &out}
	s.Draw("a\nb\n")
	fmt.Fprintln(s, "log")
	s.Draw("c\n")
	if want := "a\nb\n" + "\r\x1b[2A\x1b[J" + "log\n" + "a\nb\n" + "\r\x1b[2A\x1b[J" + "c\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestPercentIsNotFullBeforeTheEnd(t *testing.T) {
	for _, c := range []struct {
		p    stream.Progress
		want string
	}{
		{stream.Progress{Records: 5}, "-"}, {stream.Progress{Records: 0, Size: 3}, "0%"}, {stream.Progress{Records: 999_999, Size: 1_000_000}, "99%"},
		{stream.Progress{Records: 3, Size: 3}, "100%"}, {stream.Progress{Records: 5, Size: 3}, "100%"},
	} {
		if got := jobtext.Percent(c.p); got != c.want {
			t.Errorf("%+v: %s, want %s", c.p, got, c.want)
		}
	}
}

func TestExecCommand(t *testing.T) {
	batch := func() *stream.Batch {
		return &stream.Batch{Job: stream.Job{ID: "j", Stream: "s"}, Records: []stream.Record{{Seq: 4, Key: []byte("k"), Value: []byte(`{"a":"<"}`)}, {Seq: 5, Key: []byte{0xff}, Value: []byte{0xfe}}}}
	}
	var out bytes.Buffer
	if err := execCommand(`cat; echo "$LEVADA_JOB $LEVADA_STREAM $LEVADA_FIRST_SEQ"`, &out)(t.Context(), batch()); err != nil {
		t.Fatal(err)
	}
	want := `{"job":"j","stream":"s","seq":4,"id":"j/4","key":"k","keyEncoding":"text","value":"{\"a\":\"<\"}","valueEncoding":"text"}` + "\n" +
		`{"job":"j","stream":"s","seq":5,"id":"j/5","key":"/w==","keyEncoding":"base64","value":"/g==","valueEncoding":"base64"}` + "\nj s 4\n"
	if out.String() != want {
		t.Errorf("the command got\n%swant\n%s", out.String(), want)
	}
	if err := execCommand("echo no such user >&2; exit 65", io.Discard)(t.Context(), batch()); stream.VerdictOf(err) != stream.VerdictSkip || !strings.Contains(err.Error(), "no such user") {
		t.Errorf("exit code 65: %q, %v", stream.VerdictOf(err), err)
	}
	// An error that ends with a colon looks cut off.
	if err := execCommand("exit 3", io.Discard)(t.Context(), batch()); err == nil || err.Error() != "--exec ended with exit code 3: it wrote nothing to standard error" {
		t.Errorf("a command without a word: %v", err)
	}
	if err := execCommand("exit 1", io.Discard)(t.Context(), batch()); err == nil || stream.VerdictOf(err) != stream.NoVerdict {
		t.Errorf("exit code 1: %q, %v", stream.VerdictOf(err), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := execCommand("sleep 60", io.Discard)(ctx, batch()); err == nil {
		t.Error("a command that outlasts its context is done")
	}
}

// The metrics of a worker, by the events that it tells, and the probes.
func TestWorkerMetricsAndProbes(t *testing.T) {
	s, err := sqlitestore.Open(t.Context(), filepath.Join(t.TempDir(), "jobs.db"))
	if err != nil {
		t.Fatal(err)
	}
	d := &connect.Database{Store: s, SQLite: s}
	defer d.Close()
	if _, err := d.Submit(t.Context(), stream.Job{Stream: "users"}); err != nil {
		t.Fatal(err)
	}
	registry := newRegistry("dev")
	m := streammetrics.NewWorker()
	registry.MustRegister(m, streammetrics.NewStore(d.Store))
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: d, Dial: stream.NewConnections("").Dial})
	if err != nil {
		t.Fatal(err)
	}
	m.Watch(worker)
	job := stream.Job{ID: "j", Stream: "users"}
	for _, e := range []stream.Event{
		{Kind: stream.EventClaimed, Reclaimed: true}, {Kind: stream.EventCommitted, From: 1, To: 100, Bytes: 5000, Bad: 3, Took: 30 * time.Millisecond}, {Kind: stream.EventRetry, Reason: stream.ReasonLockWait},
		{Kind: stream.EventDisconnected, Reason: "DRAINING"}, {Kind: stream.EventDisconnected}, {Kind: stream.EventLost}, {Kind: stream.EventReleased, State: stream.Completed},
	} {
		e.Job = job
		m.Observe(e)
	}
	p := probes{registry: registry, log: slog.New(slog.DiscardHandler), live: func(context.Context) error { return fmt.Errorf("1 handlers do not return") }}
	address, stop, err := p.serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	get := func(path string) (int, string) {
		t.Helper()
		res, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	code, text := get("/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d: %s", code, text)
	}
	for _, want := range []string{
		`levada_stream_records_total{stream="users"} 100`, `levada_stream_bytes_total{stream="users"} 5000`, `levada_stream_commit_seconds_bucket{stream="users",le="0.05"} 1`,
		`levada_stream_quarantined_total{stream="users"} 3`, `levada_stream_retries_total{reason="LOCK_WAIT",stream="users"} 1`, `levada_stream_disconnects_total{reason="DRAINING",stream="users"} 1`,
		`levada_stream_disconnects_total{reason="CUT",stream="users"} 1`, `levada_stream_lost_leases_total{stream="users"} 1`, `levada_stream_claims_total{reclaimed="true",stream="users"} 1`,
		`levada_stream_released_total{state="completed",stream="users"} 1`, `levada_stream_jobs{state="ready",stream="users"} 1`, "levada_stream_orphans 0", "levada_stream_stuck_handlers 0",
		"levada_stream_jobs_running 0", "levada_stream_store_up 1",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
	if code, text := get("/livez"); code != http.StatusServiceUnavailable || !strings.Contains(text, "do not return") {
		t.Errorf("/livez: %d %s", code, text)
	}
	if code, _ := get("/readyz"); code != http.StatusNoContent {
		t.Errorf("/readyz: %d", code)
	}
}
