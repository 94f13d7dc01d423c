//go:build unix

package testserver

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"
)

// victim makes this binary one that starts servers and is then killed.
const victim = "LEVADA_TESTSERVER_VICTIM"

func TestPostgresSharedServerGivesEachTestADatabase(t *testing.T) {
	defer goleak.VerifyNone(t)
	var first string
	t.Run("one", func(t *testing.T) {
		first = Postgres(t)
		mustExec(t, first, "CREATE TABLE here (x int)")
	})
	t.Run("two", func(t *testing.T) {
		second := Postgres(t)
		if second == first {
			t.Errorf("two tests were given the same database %s", second)
		}
		mustExec(t, second, "CREATE TABLE here (x int)")
	})
	if _, err := pgx.Connect(t.Context(), first); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("the first test's database is still there: %v", err)
	}
}

func TestPostgresServerKeepsWhatWasCommitted(t *testing.T) {
	s := PostgresServer(t)
	mustExec(t, s.DSN(), "CREATE TABLE kept (x int)")
	for _, how := range []How{Fast, Immediate, Killed} {
		mustExec(t, s.DSN(), "INSERT INTO kept VALUES (1)")
		s.Stop(how)
		if c, err := pgx.Connect(t.Context(), s.DSN()); err == nil {
			_ = c.Close(t.Context())
			t.Fatal("a stopped server took a connection")
		}
		s.Start()
	}
	c := connect(t, s.DSN())
	var rows int
	if err := c.QueryRow(t.Context(), "SELECT count(*) FROM kept").Scan(&rows); err != nil || rows != 3 {
		t.Errorf("after three restarts there are %d rows of 3 (error %v)", rows, err)
	}
}

func TestPostgresServerFreeze(t *testing.T) {
	s := PostgresServer(t)
	c := connect(t, s.DSN())
	s.Freeze()
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Exec(short, "SELECT 1"); err == nil {
		t.Error("a frozen server answered")
	}
	s.Thaw()
	mustExec(t, s.DSN(), "SELECT 1")
}

func TestRabbitMQServerRestarts(t *testing.T) {
	s := RabbitMQServer(t)
	use := func(name string) {
		t.Helper()
		c, err := amqp.Dial(s.DSN())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		ch, err := c.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
			t.Fatal(err)
		}
	}
	use("a")
	s.Restart(Fast)
	use("a")
	s.Restart(Killed)
	use("a")
}

// TestServersEndWithTheBinary kills a test binary, and with it the process group, while its servers run.
func TestServersEndWithTheBinary(t *testing.T) {
	if os.Getenv(victim) != "" {
		t.Skip("this is the victim")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), victim+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(said.String(), "ready\n") {
		n, err := out.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			t.Fatalf("the victim ended too early: %v\n%s", err, said.String())
		}
	}
	var dirs []string
	for line := range strings.Lines(said.String()) {
		if dir, ok := strings.CutPrefix(strings.TrimSpace(line), "dir "); ok {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) != 3 {
		t.Fatalf("the victim named %d directories of 3:\n%s", len(dirs), said.String())
	}
	for _, dir := range dirs {
		if len(processesIn(dir)) == 0 {
			t.Errorf("no process works in %s, so nothing is tested", dir)
		}
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	deadline := time.Now().Add(30 * time.Second)
	for _, dir := range dirs {
		for {
			_, err := os.Stat(dir)
			left := processesIn(dir)
			if os.IsNotExist(err) && len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("30 s after the binary was killed, %s is there (%v) with processes %v", dir, err, left)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// processesIn returns the processes whose working directory, or that of the one that started them, is in dir.
func processesIn(dir string) (found []string) {
	list, _ := os.ReadDir("/proc")
	for _, e := range list {
		if cwd, err := os.Readlink("/proc/" + e.Name() + "/cwd"); err == nil && strings.HasPrefix(cwd, dir) {
			found = append(found, e.Name())
		}
	}
	return found
}

// TestVictim is run by TestServersEndWithTheBinary only.
func TestVictim(t *testing.T) {
	if os.Getenv(victim) == "" {
		t.Skip("only as a process of its own")
	}
	Postgres(t)
	RabbitMQ(t)
	s := PostgresServer(t)
	s.Freeze() // ends all the same
	for _, dir := range []string{sharedPostgres.n.dir, sharedRabbitMQ.n.dir, s.n.dir} {
		_, _ = os.Stdout.WriteString("dir " + dir + "\n")
	}
	_, _ = os.Stdout.WriteString("ready\n")
	select {}
}

func TestRequire(t *testing.T) {
	for _, c := range []struct {
		ci, want string
	}{{"", "skip"}, {"true", "fatal"}} {
		t.Setenv("CI", c.ci)
		spy := &verdict{TB: t}
		require(spy, postgres, errMissing)
		if spy.was != c.want {
			t.Errorf("CI=%q: a missing program means %q, want %q", c.ci, spy.was, c.want)
		}
	}
}

// verdict notes how a test would have ended.
type verdict struct {
	testing.TB
	was string
}

func (v *verdict) Helper()               {}
func (v *verdict) Skipf(string, ...any)  { v.was = "skip" }
func (v *verdict) Fatalf(string, ...any) { v.was = "fatal" }

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func mustExec(t *testing.T, dsn, statement string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), statement); err != nil {
		t.Errorf("%s: %v", statement, err)
	}
	_ = c.Close(t.Context())
}
