package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "modernc.org/sqlite" // to look into the copies

	"github.com/levada-io/levada/internal/testserver"
)

// streamDir is an empty directory with the program beside it.
func streamDir(t *testing.T) *example {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	e := &example{dir: filepath.Join(root, "work")}
	if err := errors.Join(os.Symlink(bin, filepath.Join(root, "bin")), os.Mkdir(e.dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return e
}

// users appends the lines of users from a number to another.
func (e *example) users(t *testing.T, from, to int) {
	t.Helper()
	path := filepath.Join(e.dir, "users")
	if _, err := os.Stat(path); err != nil {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintf(&b, `{"id":%d,"name":"User %d"}`+"\n", i, i)
	}
	e.appendTo(t, "users", b.String())
}

// jobStatus is what show prints.
type jobStatus struct {
	State, Reason string
	Next          string
	LastError     string `json:"lastError"`
	Attempts      int
	Progress      struct{ Records, Bad uint64 }
	Quarantine    map[string]int
}

func (e *example) show(t *testing.T, job string, flags ...string) (s jobStatus) {
	t.Helper()
	if err := json.Unmarshal([]byte(e.levada(t, append([]string{"stream", "show", job, "-o", "json"}, flags...)...)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// untilRecords waits until the job has come to a record.
func (e *example) untilRecords(t *testing.T, by *running, job string, n uint64, flags ...string) {
	t.Helper()
	by.until(t, func() bool { return e.show(t, job, flags...).Progress.Records >= n })
}

// fails runs a command that is to end with an exit code, and returns what it says.
func (e *example) fails(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	r := e.startCommand(t, args...)
	err := <-r.ended
	r.over = true
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != code {
		t.Fatalf("%v ended with %v, want exit code %d\n%s%s", args, err, code, r.stdout.String(), r.stderr.String())
	}
	return r.stdout.String(), r.stderr.String()
}

// dies is a death that nobody could prepare for.
func (r *running) dies(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	r.over = true
}

func (e *example) serve(t *testing.T, flags ...string) *running {
	t.Helper()
	r := e.startCommand(t, append([]string{"stream", "serve"}, flags...)...)
	r.until(t, func() bool { return strings.Contains(r.stdout.String(), "serving ") })
	return r
}

type streamVerdict struct {
	OK          bool
	Table       struct{ Records uint64 }
	Producer    struct{ Records uint64 }
	Differences []struct {
		Seq  uint64
		What string
	}
}

func verdict(t *testing.T, text string) (v streamVerdict) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// The whole way on SQLite, with deaths of both services at known points.
func TestStreamSQLite(t *testing.T) {
	t.Parallel()
	e, address := streamDir(t), testserver.FreeAddress(t)
	serve := func(flags ...string) *running {
		return e.serve(t, append([]string{"--file", "users=users", "--listen", address}, flags...)...)
	}
	e.users(t, 1, 5000)
	producer := serve("--follow")
	job := strings.TrimSpace(e.levada(t, "stream", "submit", "users", "--target", address, "--dedupe-key", "today"))
	if again := strings.TrimSpace(e.levada(t, "stream", "submit", "users", "--target", address, "--dedupe-key", "today")); again != job {
		t.Errorf("submitting the same again made another job: %s and %s", job, again)
	}
	work := func() *running { return e.startCommand(t, "stream", "work", "--stream", "users=copies") }

	worker := work()
	e.untilRecords(t, worker, job, 5000)
	_, refused := e.fails(t, 1, "stream", "work", "--stream", "users=copies")
	if !strings.Contains(refused, "stop it, or give this worker a file of its own") || !strings.Contains(refused, fmt.Sprint(worker.cmd.Process.Pid)) {
		t.Errorf("a second worker gets %q", refused)
	}
	worker.dies(t)
	e.users(t, 5001, 10000)
	worker = work() // it does not wait for the lease of the dead one
	e.untilRecords(t, worker, job, 10000)

	producer.dies(t)
	e.users(t, 10001, 15000)
	producer = serve("--follow")
	e.untilRecords(t, worker, job, 15000)

	e.levada(t, "stream", "pause", job[:8])
	e.users(t, 15001, 20000)
	if s := e.show(t, job); s.State != "paused" || s.Progress.Records != 15000 {
		t.Errorf("a paused job is %s at record %d", s.State, s.Progress.Records)
	}
	e.levada(t, "stream", "resume", job)
	e.untilRecords(t, worker, job, 20000)
	e.levada(t, "stream", "cancel", job)
	e.levada(t, "stream", "retry", job)
	if v := verdict(t, e.levada(t, "stream", "verify", job, "--table", "copies", "-o", "json")); !v.OK || v.Table.Records != 20000 || v.Producer.Records != 20000 {
		t.Errorf("in between: %+v", v)
	}

	producer.stop(t)
	producer = serve() // without --follow the stream has an end
	e.levada(t, "stream", "submit", "users", "--target", address, "--dedupe-key", "today", "--wait")
	worker.stop(t)
	if s := e.show(t, job); s.State != "completed" || s.Progress.Records != 20000 || s.Attempts < 4 {
		t.Errorf("at the end: %+v", s)
	}
	if v := verdict(t, e.levada(t, "stream", "verify", job, "--table", "copies", "-o", "json")); !v.OK || v.Table.Records != 20000 {
		t.Errorf("at the end: %+v", v)
	}

	// What verify is for.
	db, err := sql.Open("sqlite", filepath.Join(e.dir, "levada-streams.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range []string{
		`delete from copies where seq = 77`,
		`insert into copies (job, seq, key, value) select job, seq, key, value from copies where seq = 12000`,
		`update copies set value = x'00' where seq = 19000`,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	stdout, _ := e.fails(t, 1, "stream", "verify", job, "--table", "copies", "-o", "json")
	var seqs []uint64
	for _, d := range verdict(t, stdout).Differences {
		seqs = append(seqs, d.Seq)
	}
	same(t, "records that differ", []uint64{77, 12000, 19000}, seqs)
	producer.stop(t)
}

// Several jobs, two workers, one of which is killed: the other one takes over when the lease is over.
func TestStreamPostgres(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	e, address := streamDir(t), testserver.FreeAddress(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	const rows = 10000
	if _, err := conn.Exec(t.Context(), fmt.Sprintf(`create table people (id bigint primary key, name text not null);
		insert into people select n, 'User ' || n from generate_series(1, %d) n`, rows)); err != nil {
		t.Fatal(err)
	}
	producer := e.serve(t, "--postgres", dsn, "--table", "people=people", "--snapshot", "--listen", address)
	var jobs []string
	for range 3 {
		jobs = append(jobs, strings.TrimSpace(e.levada(t, "stream", "submit", "people", "--store", dsn, "--target", address)))
	}
	work := func() *running {
		return e.startCommand(t, "stream", "work", "--store", dsn, "--stream", "people=copies", "--lease", "2s", "--jobs", "2", "--batch", "100", "--until-done")
	}
	victim := work()
	e.untilRecords(t, victim, jobs[0], 1, "--store", dsn)
	survivor := work()
	victim.dies(t)
	survivor.wait(t)
	for _, job := range jobs {
		if s := e.show(t, job, "--store", dsn); s.State != "completed" || s.Progress.Records != rows {
			t.Errorf("job %s: %+v", job, s)
		}
		if v := verdict(t, e.levada(t, "stream", "verify", job, "--store", dsn, "--table", "copies", "-o", "json")); !v.OK || v.Table.Records != rows {
			t.Errorf("job %s: %+v", job, v)
		}
	}
	var n, different int
	if err := conn.QueryRow(t.Context(), `select count(*), count(distinct (job, seq)) from copies`).Scan(&n, &different); err != nil || n != 3*rows || different != n {
		t.Errorf("the table has %d rows, %d of them different: %v", n, different, err)
	}
	producer.stop(t)
}

// A record that its command refuses is found, quarantined, and handed over again.
func TestStreamQuarantine(t *testing.T) {
	t.Parallel()
	e, address := streamDir(t), testserver.FreeAddress(t)
	e.users(t, 1, 500)
	e.appendTo(t, "users", "poison\n")
	e.users(t, 501, 1000)
	producer := e.serve(t, "--file", "users=users", "--listen", address)
	job := strings.TrimSpace(e.levada(t, "stream", "submit", "users", "--target", address))
	command := `tee lines.new | { if grep -q '"value":"poison"' && ! test -e mended; then exit 65; fi; } && cat lines.new >> lines`
	work := func() { e.levada(t, "stream", "work", "--stream", "users", "--exec", command, "--until-done") }
	work()
	if s := e.show(t, job); s.State != "completed" || s.Progress.Records != 1001 || s.Progress.Bad != 1 || s.Quarantine["waiting"] != 1 ||
		!strings.Contains(s.Next, "1 records wait in quarantine") {
		t.Fatalf("the job: %+v", s)
	}
	if got := len(lines(e.read(t, "lines"))); got != 1000 {
		t.Errorf("the command got %d records, want 1000", got)
	}
	var q struct {
		Seq     uint64
		Payload []byte
		Class   string
		State   string
	}
	if err := json.Unmarshal([]byte(e.levada(t, "stream", "quarantine", "list", job, "-o", "json")), &q); err != nil || q.Seq != 501 || string(q.Payload) != "poison" || q.Class != "refused" {
		t.Errorf("in quarantine: %+v, %v", q, err)
	}
	_, stderr := e.fails(t, 1, "stream", "quarantine", "replay", job, "7")
	if !strings.Contains(stderr, "quarantine list") {
		t.Errorf("replaying what is not there says %q", stderr)
	}
	if err := os.WriteFile(filepath.Join(e.dir, "mended"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	e.levada(t, "stream", "quarantine", "replay", job, "501")
	work()
	if s := e.show(t, job); s.State != "completed" || s.Quarantine["replayed"] != 1 || s.Next != "nothing: it is complete" {
		t.Errorf("after the replay: %+v", s)
	}
	if got := lines(e.read(t, "lines")); len(got) != 1001 || !strings.Contains(got[1000], "poison") {
		t.Errorf("the command got %d records in all, want 1001, the last one the one that was replayed", len(got))
	}

	// A job of a stream that nobody has fails with words that help.
	e.levada(t, "stream", "submit", "nobody", "--id", "lost", "--target", address)
	e.fails(t, 1, "stream", "work", "--stream", "nobody", "--print", "--until-done", "--denied-grace", "1s")
	if s := e.show(t, "lost"); s.State != "failed" || s.Reason != "UNKNOWN_STREAM" {
		t.Errorf("a job of an unknown stream: %+v", s)
	}
	producer.stop(t)
}

// demo runs the demo, which is to lose nothing and to leave nothing.
func demo(t *testing.T, args ...string) {
	t.Helper()
	e := streamDir(t)
	tmp := filepath.Join(e.dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../bin/levada", append([]string{"stream", "demo", "-o", "json", "--users", "20000", "--rate", "5000"}, args...)...)
	cmd.Dir, cmd.Env = e.dir, append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	all := lines(string(out))
	var o struct {
		OK                bool
		Table, Quarantine int
		Lost, Twice       int
	}
	if err := json.Unmarshal([]byte(all[len(all)-1]), &o); err != nil || !o.OK || o.Lost+o.Twice > 0 || o.Table+o.Quarantine != 20000 {
		t.Errorf("the demo's outcome: %+v, %v\n%s", o, err, out)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("the demo left %v, %v", left, err)
	}
}

func TestStreamDemo(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); demo(t) })
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		dsn := testserver.Postgres(t)
		demo(t, "cut", "restart", "sigterm", "panic", "database", "--store", dsn)
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		var left int
		if err := conn.QueryRow(t.Context(), `select count(*) from pg_namespace where nspname like 'levada%'`).Scan(&left); err != nil || left > 0 {
			t.Errorf("the demo left %d schemas, %v", left, err)
		}
	})
}

// The example that newcomers copy: it stays short, and does what it says.
func TestStreamExample(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../examples/streams/users/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(lines(string(text))); n >= 100 {
		t.Errorf("the example has %d lines, and is to have less than 100", n)
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "users"), "./examples/streams/users")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for range 2 { // the second time there is nothing left to do
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, "./users")
		cmd.Dir = dir
		out, err := cmd.Output()
		cancel()
		if err != nil || string(out) != "job completed: 10000 users copied\n" {
			t.Fatalf("%v: %q", err, out)
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "users.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n int
	if err := db.QueryRow(`select count(*) from users`).Scan(&n); err != nil || n != 10000 {
		t.Errorf("%d users were copied: %v", n, err)
	}
}
