//go:build linux

// Package streams tests the two programs to copy, as real processes at real servers.
package streams

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
)

// patience is for what takes seconds, on a machine that is busy.
const patience = 3 * time.Minute

// program is one of the two, started again after each end.
type program struct {
	t           *testing.T
	path, admin string
	env         []string
	log         *testserver.Tail
	cmd         *exec.Cmd
	done        chan struct{}
}

// build builds the program of a folder.
func build(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("go", "build", "-o", path, "./"+name).CombinedOutput(); err != nil {
		t.Fatalf("go build ./%s: %v\n%s", name, err, out)
	}
	return path
}

// start starts it, and waits until it is ready.
func (p *program) start() {
	p.t.Helper()
	p.cmd = exec.Command(p.path)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd, done := p.cmd, make(chan struct{})
	p.done = done
	go func() { defer close(done); cmd.Wait() }()
	p.ready()
}

func (p *program) ready() {
	p.t.Helper()
	wait(p.t, p.path+" is ready", func() bool {
		select {
		case <-p.done:
			p.t.Fatalf("%s ended: %v\n%s", p.path, p.cmd.ProcessState, p.log)
		default:
		}
		code, _ := p.get("/readyz")
		return code < 300
	})
}

// end sends a signal, and waits until the process has ended.
func (p *program) end(signal syscall.Signal) {
	p.t.Helper()
	p.cmd.Process.Signal(signal)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s did not end within %v of %v\n%s", p.path, patience, signal, p.log)
	}
	if code := p.cmd.ProcessState.ExitCode(); signal == syscall.SIGTERM && code != 0 {
		p.t.Errorf("%s ended with %d after SIGTERM, and should end with 0\n%s", p.path, code, p.log)
	}
}

func (p *program) get(path string) (int, string) {
	client := http.Client{Timeout: 10 * time.Second}
	r, err := client.Get("http://" + p.admin + path)
	if err != nil {
		return http.StatusBadGateway, err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(b)
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: not %s", patience, what)
		}
	}
}

// system is the two services, with their servers.
type system struct {
	t                *testing.T
	database, broker *testserver.Server
	shop, copied     *pgxpool.Pool
	producer         *program
	workers          []*program
}

func newSystem(t *testing.T, workers int) *system {
	s := &system{t: t, database: testserver.PostgresServer(t), broker: testserver.RabbitMQServer(t)}
	shop, copied := s.create("shop"), s.create("copy")
	s.shop, s.copied = s.pool(shop), s.pool(copied)
	listen := testserver.FreeAddress(t)
	s.producer = s.program(build(t, "producer"), "DATABASE_URL="+shop, "LISTEN="+listen)
	path := build(t, "worker")
	for i := range workers {
		s.workers = append(s.workers, s.program(path, "DATABASE_URL="+copied, "AMQP_URL="+s.broker.DSN(), "PRODUCER="+listen,
			fmt.Sprintf("POD_NAME=worker-%d", i), fmt.Sprintf("POD_UID=uid-%d", i), "CONTAINER_NAME=worker"))
	}
	return s
}

// create makes a database and returns its URL.
func (s *system) create(name string) string {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.database.DSN())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(s.t.Context(), "create database "+name); err != nil {
		s.t.Fatal(err)
	}
	return strings.Replace(s.database.DSN(), "/postgres?", "/"+name+"?", 1)
}

func (s *system) pool(dsn string) *pgxpool.Pool {
	s.t.Helper()
	pool, err := pgxpool.New(s.t.Context(), dsn)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(pool.Close)
	return pool
}

func (s *system) program(path string, env ...string) *program {
	p := &program{t: s.t, path: path, admin: testserver.FreeAddress(s.t), log: &testserver.Tail{}}
	p.env = append(env, "ADMIN_LISTEN="+p.admin)
	s.t.Cleanup(func() {
		if p.cmd != nil {
			p.cmd.Process.Kill()
			<-p.done
		}
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", p.env, p.log)
		}
	})
	return p
}

var countries = []string{"BE", "NL", "LU"}

// fill makes users, in an order that is not that of their ids.
func (s *system) fill(n int) {
	s.t.Helper()
	_, err := s.shop.Exec(s.t.Context(), `insert into users (id, country, name)
		select i, ($2::text[])[i % 3 + 1], 'User ' || i || repeat('ü', i % 50) from generate_series(1, $1) i order by hashint4(i)`, n, countries)
	if err != nil {
		s.t.Fatal(err)
	}
}

// submit asks a worker for a copy, until it has answered.
func (s *system) submit(country string) (job stream.Status) {
	s.t.Helper()
	wait(s.t, "submitted", func() bool {
		client := http.Client{Timeout: 10 * time.Second}
		r, err := client.Post("http://"+s.workers[0].admin+"/copies/"+country, "", nil)
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK && json.NewDecoder(r.Body).Decode(&job) == nil && job.ID != ""
	})
	return job
}

// rows is how many users were copied; -1 while the database does not answer.
func (s *system) rows() int {
	n := -1
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	if err := s.copied.QueryRow(ctx, "select count(*) from copied_users").Scan(&n); err != nil {
		return -1
	}
	return n
}

// complete waits until all jobs are completed.
func (s *system) complete(jobs []stream.Status) {
	s.t.Helper()
	for _, job := range jobs {
		wait(s.t, "completed", func() bool {
			code, text := s.workers[0].get("/jobs/" + job.ID)
			var status stream.Status
			if code != http.StatusOK || json.Unmarshal([]byte(text), &status) != nil {
				return false
			}
			if status.State.Final() && status.State != stream.Completed {
				s.t.Fatalf("job %s is %s: %s", job.ID, status.State, status.LastError)
			}
			return status.State == stream.Completed
		})
	}
}

// owners is how many jobs are leased to a pod.
func (s *system) owners(jobs []stream.Status, pod string) (n int) {
	s.t.Helper()
	var ids []string
	for _, job := range jobs {
		ids = append(ids, job.ID)
	}
	if err := s.copied.QueryRow(s.t.Context(), `select count(*) from levada_job where id = any($1) and state = 'running' and owner_pod = $2 and owner_pod_uid = 'uid-' || right($2, 1)
		and owner_container = 'worker'`, ids, pod).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// owned checks it: after SIGTERM, a worker has given its jobs back, so that others need not wait for its leases to run out.
func (s *system) owned(jobs []stream.Status, pod string, want int) {
	s.t.Helper()
	if got := s.owners(jobs, pod); got != want {
		s.t.Errorf("%s has %d jobs, and should have %d", pod, got, want)
	}
}

// same compares the tables, row by row, in both directions.
func (s *system) same(n int) {
	s.t.Helper()
	read := func(pool *pgxpool.Pool, table string) (all []string) {
		rows, err := pool.Query(s.t.Context(), "select id || ' ' || country || ' ' || name from "+table+" order by id")
		if err == nil {
			all, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		if err != nil {
			s.t.Fatal(err)
		}
		return all
	}
	users, copies := read(s.shop, "users"), read(s.copied, "copied_users")
	if len(users) != n || !slices.Equal(users, copies) {
		s.t.Errorf("there are %d users, %d copies, and the tables are not equal", len(users), len(copies))
	}
	var quarantined int
	if err := s.copied.QueryRow(s.t.Context(), "select count(*) from levada_quarantine").Scan(&quarantined); err != nil || quarantined != 0 {
		s.t.Errorf("%d records are in quarantine, %v: a record that is inserted twice ends there", quarantined, err)
	}
}

// TestServicesCopyExactly kills and shuts down each of the two programs, the database and the message queue in turn, while three copies run. In the
// end both tables are equal. On the way, jobs say which pod has them, SIGTERM gives them back at once, and metrics count.
func TestServicesCopyExactly(t *testing.T) {
	const n = 60_000
	s := newSystem(t, 2)
	s.producer.start()
	s.fill(n)
	for _, w := range s.workers {
		w.start()
	}
	var jobs []stream.Status
	for _, country := range countries {
		jobs = append(jobs, s.submit(country))
	}
	wait(t, "in work", func() bool { return s.rows() > 0 })
	if a, b := s.owners(jobs, "worker-0"), s.owners(jobs, "worker-1"); a+b == 0 {
		t.Error("no job has a pod of the environment as its owner")
	}
	if again := s.submit(countries[0]); again.ID != jobs[0].ID {
		t.Errorf("the same request made another job: %s, and %s before", again.ID, jobs[0].ID)
	}
	interruptions := []struct {
		name string
		do   func()
	}{
		{"SIGKILL of a worker", func() { s.workers[0].end(syscall.SIGKILL); s.workers[0].start() }},
		{"SIGKILL of the producer", func() { s.producer.end(syscall.SIGKILL); s.producer.start() }},
		{"SIGTERM of a worker", func() { s.workers[1].end(syscall.SIGTERM); s.owned(jobs, "worker-1", 0); s.workers[1].start() }},
		{"SIGTERM of the producer", func() { s.producer.end(syscall.SIGTERM); s.producer.start() }},
		{"crash of Postgres", func() { s.database.Restart(testserver.Killed) }},
		{"SIGTERM of the other worker", func() { s.workers[0].end(syscall.SIGTERM); s.owned(jobs, "worker-0", 0); s.workers[0].start() }},
		{"SIGKILL of a worker again", func() { s.workers[1].end(syscall.SIGKILL); s.workers[1].start() }},
		{"crash of RabbitMQ", func() { s.broker.Restart(testserver.Killed) }}, // the last one: it takes seconds, in which the copies go on
	}
	for i, interruption := range interruptions {
		at := n / 20 * (i + 1)
		wait(t, fmt.Sprintf("%d rows copied", at), func() bool { return s.rows() >= at })
		t.Logf("%s at row %d", interruption.name, s.rows())
		interruption.do()
	}
	s.complete(jobs)
	s.same(n)
	wait(t, "the producer's metrics say that no stream is open", func() bool {
		_, text := s.producer.get("/metrics")
		return strings.Contains(text, "levada_stream_open_streams 0\n")
	})
	counted := false
	for _, w := range s.workers {
		_, text := w.get("/metrics")
		counted = counted || regexp.MustCompile(`(?m)^levada_stream_records_total\{stream="users"\} [1-9]`).MatchString(text)
	}
	if !counted {
		t.Error("the workers' metrics have no records, and the last interruption came before the last records")
	}
	for _, p := range append(s.workers, s.producer) {
		p.ready() // also after the restart of the database
		if code, text := p.get("/livez"); code >= 300 {
			t.Errorf("%s is not alive: %s", p.path, text)
		}
		p.end(syscall.SIGTERM)
	}
}

// TestManifestFitsThePrograms: a variable that is missing or misspelled in the manifest is found in the cluster only.
func TestManifestFitsThePrograms(t *testing.T) {
	text, err := os.ReadFile("services.yaml")
	if err != nil {
		t.Fatal(err)
	}
	deployments := map[string]appsv1.Deployment{}
	var service corev1.Service
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		if bytes.Contains(document, []byte("kind: Service\n")) {
			err = yaml.UnmarshalStrict(document, &service)
		} else {
			var d appsv1.Deployment
			err = yaml.UnmarshalStrict(document, &d)
			deployments[d.Name] = d
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
	}
	for _, name := range []string{"producer", "worker"} {
		source, err := os.ReadFile(filepath.Join(name, "main.go"))
		if err != nil {
			t.Fatal(err)
		}
		d := deployments[name]
		if len(d.Spec.Template.Spec.Containers) != 1 || d.Spec.Selector.MatchLabels["app"] != d.Spec.Template.Labels["app"] {
			t.Fatalf("deployment %s: one container, and a selector of its pods", name)
		}
		container := d.Spec.Template.Spec.Containers[0]
		var has []string
		for _, env := range container.Env {
			has = append(has, env.Name)
			if env.Name == "CONTAINER_NAME" && env.Value != container.Name {
				t.Errorf("CONTAINER_NAME is %q, and the container's name %q", env.Value, container.Name)
			}
		}
		for _, m := range regexp.MustCompile(`os\.Getenv\("(\w+)"\)`).FindAllSubmatch(source, -1) {
			if !slices.Contains(has, string(m[1])) {
				t.Errorf("%s reads %s, which the manifest does not set", name, m[1])
			}
		}
		if grace := d.Spec.Template.Spec.TerminationGracePeriodSeconds; grace == nil || *grace < 25 {
			t.Errorf("%s has less time to shut down than it takes", name)
		}
		for _, probe := range []*corev1.Probe{container.ReadinessProbe, container.LivenessProbe} {
			if probe == nil || !bytes.Contains(source, []byte(`"GET `+probe.HTTPGet.Path+`"`)) {
				t.Errorf("%s: a probe is missing, or at a path that the program does not have", name)
			}
		}
	}
	if service.Spec.Selector["app"] != deployments["producer"].Spec.Template.Labels["app"] || service.Spec.ClusterIP != "None" {
		t.Error("the service is not a headless one for the producer's pods")
	}
}
