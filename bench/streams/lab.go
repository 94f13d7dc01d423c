package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// lab runs the parts of a case as processes of their own, so that the CPU of each is known.
type lab struct {
	dir      string
	records  int
	profile  string
	program  string
	postgres *exec.Cmd
	dsn      string
}

type result struct {
	part         string
	records      int
	cpu, wall    time.Duration
	producer     float64 // us of CPU for a record
	receiver     float64
	rss          int64
	ofLimit, own string
	goal         string
}

func (r result) micros() float64 { return float64(r.cpu.Nanoseconds()) / 1e3 / float64(r.records) }
func (r result) rate() float64   { return float64(r.records) / r.wall.Seconds() }

func (l *lab) open() (err error) {
	if l.dir, err = os.MkdirTemp("", "levada-bench-streams"); err != nil {
		return err
	}
	if err := os.Chmod(l.dir, 0o755); err != nil {
		return err
	}
	l.program, err = os.Executable()
	return err
}

func (l *lab) close() {
	if l.postgres != nil {
		l.postgres.Process.Signal(syscall.SIGINT)
		l.postgres.Wait()
	}
	os.RemoveAll(l.dir)
}

// measure runs the limits and ours, one after the other.
func (l *lab) measure(c benchCase, report func(result)) error {
	if c.Store == "postgres" {
		if err := l.startPostgres(); err != nil {
			return err
		}
	}
	if c.Slow > 0 {
		r, err := l.stream(c, "work")
		if err != nil {
			return err
		}
		r.goal = goalOf(c)
		report(r)
		return nil
	}
	each, err := l.stream(c, "discard-each")
	if err != nil {
		return err
	}
	report(each)
	grpc, err := l.stream(c, "discard")
	if err != nil {
		return err
	}
	report(grpc)
	bulk, err := l.bulk(c)
	if err != nil {
		return err
	}
	report(bulk)
	ours, err := l.stream(c, "work")
	if err != nil {
		return err
	}
	limit := min(grpc.rate(), bulk.rate())
	ours.ofLimit = fmt.Sprintf("%.0f %%", 100*ours.rate()/limit)
	ours.own = fmt.Sprintf("%.2f", ours.micros()-grpc.micros()-bulk.micros())
	ours.goal = goalOf(c)
	report(ours)
	return nil
}

func (l *lab) args(c benchCase, role string, more ...string) []string {
	return append([]string{"-role", role, "-records", fmt.Sprint(l.records), "-size", fmt.Sprint(c.Size), "-slow", fmt.Sprint(c.Slow), "-profile", l.profile}, more...)
}

// stream runs a producer and a receiver.
func (l *lab) stream(c benchCase, receiver string) (result, error) {
	role := "serve"
	if receiver == "discard-each" {
		role = "serve-each"
	}
	producer := exec.Command(l.program, l.args(c, role)...)
	producer.Stderr = os.Stderr
	producer.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := producer.StdoutPipe()
	if err != nil {
		return result{}, err
	}
	if err := producer.Start(); err != nil {
		return result{}, err
	}
	defer producer.Process.Kill()
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return result{}, fmt.Errorf("the producer did not start: %w", err)
	}
	r, cmd, err := l.receive(c, receiver, "-target", strings.TrimSpace(address))
	if err != nil {
		return r, err
	}
	producer.Process.Signal(syscall.SIGTERM)
	producer.Wait()
	r.cpu += cpuOf(producer.ProcessState)
	r.producer = float64(cpuOf(producer.ProcessState).Nanoseconds()) / 1e3 / float64(l.records)
	r.part = map[string]string{"discard-each": "gRPC, a record a message", "discard": "gRPC, batches", "work": "levada"}[receiver]
	if c.Slow > 0 {
		r.part = "levada, slow sink"
	}
	_ = cmd
	return r, nil
}

func (l *lab) bulk(c benchCase) (result, error) {
	r, _, err := l.receive(c, "bulk")
	r.part = "bulk load"
	return r, err
}

// receive runs a receiver to its end. The receiver prints how long it took, without its start.
func (l *lab) receive(c benchCase, role string, more ...string) (result, *exec.Cmd, error) {
	database := filepath.Join(l.dir, fmt.Sprintf("%d.db", time.Now().UnixNano()))
	if c.Store == "postgres" {
		database = l.dsn
	}
	// What the part before left to be written must not be counted here.
	if err := l.settle(); err != nil {
		return result{}, nil, err
	}
	before, err := l.postgresCPU()
	if err != nil {
		return result{}, nil, err
	}
	cmd := exec.Command(l.program, l.args(c, role, append(more, "-database", database)...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		return result{}, cmd, fmt.Errorf("%s: %w", role, err)
	}
	if c.Store == "sqlite" {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			os.Remove(database + suffix)
		}
	}
	wall, err := time.ParseDuration(strings.TrimSpace(string(out)))
	if err != nil {
		return result{}, cmd, fmt.Errorf("%s printed %q", role, out)
	}
	if err := l.settle(); err != nil { // and what this one left, must be
		return result{}, cmd, err
	}
	after, err := l.postgresCPU()
	if err != nil {
		return result{}, cmd, err
	}
	cpu := cpuOf(cmd.ProcessState)
	return result{records: l.records, cpu: cpu + after - before, wall: wall, receiver: float64(cpu.Nanoseconds()) / 1e3 / float64(l.records),
		rss: cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10}, cmd, nil
}

func cpuOf(s *os.ProcessState) time.Duration { return s.UserTime() + s.SystemTime() }

// startPostgres starts a server with its usual settings: durable commits.
func (l *lab) startPostgres() error {
	if l.postgres != nil {
		return nil
	}
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		return errors.New("there is no Postgres: apt-get install postgresql-15")
	}
	bin := bins[len(bins)-1]
	data := filepath.Join(l.dir, "postgres")
	as := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() == 0 { // Postgres refuses root
		const nobody = 65534
		as.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := errors.Join(os.Mkdir(data, 0o700), os.Chown(data, nobody, nobody)); err != nil {
			return err
		}
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = as, "/"
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	l.postgres = exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", data, "-c", "listen_addresses=", "-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB", "-c", "autovacuum=off")
	l.postgres.SysProcAttr, l.postgres.Dir = as, "/"
	if err := l.postgres.Start(); err != nil {
		return err
	}
	l.dsn = "host=" + data + " user=postgres dbname=postgres"
	for deadline := time.Now().Add(20 * time.Second); ; {
		ready := exec.Command(filepath.Join(bin, "pg_isready"), "-h", data)
		if ready.Run() == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("Postgres did not start")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// settle has Postgres write what it holds in memory.
func (l *lab) settle() error {
	if l.postgres == nil {
		return nil
	}
	conn, err := pgx.Connect(context.Background(), l.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(context.Background(), "checkpoint")
	return err
}

// postgresCPU is what the server and its children have used, those that ended included.
func (l *lab) postgresCPU() (time.Duration, error) {
	if l.postgres == nil {
		return 0, nil
	}
	total, err := cpuOfPid(l.postgres.Process.Pid, true)
	if err != nil {
		return 0, err
	}
	tasks, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range tasks {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		fields, err := statFields(pid)
		if err == nil && fields[1] == strconv.Itoa(l.postgres.Process.Pid) {
			cpu, _ := cpuOfPid(pid, false)
			total += cpu
		}
	}
	return total, nil
}

// statFields are those of /proc/PID/stat after the name: state, ppid, ...
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:]), nil
}

func cpuOfPid(pid int, withChildren bool) (time.Duration, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	last := 13
	if withChildren {
		last = 15
	}
	ticks := 0
	for _, field := range fields[11:last] { // utime stime cutime cstime
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
