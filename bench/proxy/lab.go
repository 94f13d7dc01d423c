package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Cores: the proxy has one to itself.
const (
	loadCore  = "0"
	proxyCore = "1"
)

// lab starts and ends the processes of a run, and keeps their files.
type lab struct {
	dir     string
	program string // this one
	// profiles is the directory for CPU profiles of ours; empty for none.
	profiles string
	stop     func() bool
	// pace is microseconds of CPU for a fixed piece of work on the proxy's core, once in each round.
	pace []float64

	mu      sync.Mutex
	running map[*process]bool
	stopped bool
}

// process is one that the lab has started, with those that it has started itself.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	in   io.Writer
	out  *bufio.Reader
}

func openLab(ctx context.Context) (*lab, error) {
	if _, err := exec.LookPath("taskset"); err != nil {
		return nil, errors.New("taskset, which gives the proxy a core of its own, is not there: it is in Debian's package util-linux")
	}
	if out, err := exec.Command("taskset", "-c", loadCore+","+proxyCore, "true").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cores 0 and 1 are needed, one of them for the proxy alone: %s", bytes.TrimSpace(out))
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "levada-bench-proxy")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // nginx's worker is not root
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	l := &lab{dir: dir, program: program, running: map[*process]bool{}}
	l.stop = context.AfterFunc(ctx, l.killAll) // which also ends what waits for their answers
	return l, nil
}

func (l *lab) close() error {
	l.stop()
	l.killAll()
	return os.RemoveAll(l.dir)
}

func (l *lab) killAll() {
	l.mu.Lock()
	l.stopped = true
	var all []*process
	for p := range l.running {
		all = append(all, p)
	}
	l.mu.Unlock()
	for _, p := range all {
		p.kill()
	}
}

// start runs a program on a core, with one processor for Go. What it prints goes to its log.
func (l *lab) start(name, core string, argv ...string) (*process, error) {
	return l.launch(name, core, false, argv)
}

// launch starts a program; one that is asked talks through pipes.
func (l *lab) launch(name, core string, asked bool, argv []string) (*process, error) {
	log, err := os.CreateTemp(l.dir, name+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, log: log.Name(), cmd: exec.Command("taskset", append([]string{"-c", core}, argv...)...)}
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if asked {
		if p.in, err = p.cmd.StdinPipe(); err != nil {
			return nil, err
		}
		p.cmd.Stdout = nil
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		p.out = bufio.NewReader(out)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return nil, errors.New("stopped")
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	l.running[p] = true
	return p, nil
}

// end kills the process and those that it has started. Nothing that is measured has anything to lose.
func (l *lab) end(p *process) {
	l.mu.Lock()
	there := l.running[p]
	delete(l.running, p)
	l.mu.Unlock()
	if there {
		p.kill()
		_ = p.cmd.Wait() // it was killed
	}
}

func (p *process) kill() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

// ask sends a command to a generator, and returns its answer.
func (p *process) ask(format string, args ...any) (o outcome, err error) {
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		return o, p.failed(err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return o, p.failed(err)
	}
	return o, json.Unmarshal(line, &o)
}

// failed adds what the process wrote to stderr last.
func (p *process) failed(err error) error {
	said, _ := os.ReadFile(p.log)
	said = said[max(0, len(said)-2000):]
	return fmt.Errorf("%s: %w\n%s", p.name, err, said)
}

// ready waits until the address takes connections.
func (p *process) ready(address string) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return c.Close()
		}
		if p.ended() || time.Now().After(deadline) {
			return fmt.Errorf("does not listen on %s: %w", address, err)
		}
	}
}

// ended: nobody has waited for it yet, so it is a zombie until the lab ends it.
func (p *process) ended() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	i := bytes.LastIndexByte(stat, ')')
	return err != nil || i < 0 || bytes.HasPrefix(stat[i:], []byte(") Z"))
}

// pids are those of the process and of all that it has started.
func (p *process) pids() []int {
	all := []int{p.cmd.Process.Pid}
	for i := 0; i < len(all); i++ {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		for _, list := range lists {
			b, _ := os.ReadFile(list)
			for _, field := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(field); err == nil {
					all = append(all, pid)
				}
			}
		}
	}
	return all
}

// cpu is the time that its threads have run.
func (p *process) cpu() (time.Duration, error) {
	var total time.Duration
	for _, pid := range p.pids() {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if len(threads) == 0 {
			return 0, errors.New("has ended")
		}
		for _, thread := range threads {
			b, err := os.ReadFile(thread)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // the thread has ended
			} else if err != nil {
				return 0, err
			}
			ran, _, _ := strings.Cut(string(b), " ")
			n, err := strconv.ParseInt(ran, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", thread, err)
			}
			total += time.Duration(n)
		}
	}
	return total, nil
}

// pss is its memory in KB; what it shares with others counts in part.
func (p *process) pss() (float64, error) {
	total := 0.0
	for _, pid := range p.pids() {
		path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(b), "\nPss:")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return 0, fmt.Errorf("%s has no Pss", path)
		}
		n, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		total += n
	}
	return total, nil
}

// settledPSS is its memory once it has been the same, to 1 %, for a second; or what it is after ten.
func (p *process) settledPSS() (float64, error) {
	const pause = 200 * time.Millisecond
	last, same := 0.0, 0
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(pause) {
		now, err := p.pss()
		if err != nil {
			return 0, err
		}
		same++
		if now < last*0.99 || now > last*1.01 {
			last, same = now, 0
		}
		if time.Duration(same)*pause >= time.Second || time.Now().After(deadline) {
			return now, nil
		}
	}
}

// descriptors is how many it has open.
func (p *process) descriptors() (int, error) {
	total := 0
	for _, pid := range p.pids() {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, err
		}
		total += len(open)
	}
	return total, nil
}

// connectionsTo counts the established TCP connections of the one who listens on the address.
func connectionsTo(address string) (int, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0, err
	}
	local, n := fmt.Sprintf(":%04X", number), 0
	for line := range strings.Lines(string(b)) {
		const established = "01"
		if fields := strings.Fields(line); len(fields) > 3 && strings.HasSuffix(fields[1], local) && fields[3] == established {
			n++
		}
	}
	return n, nil
}

// freeAddress is one that nobody listens on, below the ports that the system gives to clients.
func freeAddress() (string, error) {
	for range 200 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(12000+rand.IntN(20000)))
		if l, err := net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", errors.New("no free port between 12000 and 32000 on 127.0.0.1")
}

// certificate writes one for 127.0.0.1 and its key to files, and both to a third, as HAProxy wants it.
func certificate(cert, key, both string) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if der, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
		return err
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return errors.Join(os.WriteFile(cert, certPEM, 0o644), os.WriteFile(key, keyPEM, 0o644), os.WriteFile(both, append(certPEM, keyPEM...), 0o644))
}
