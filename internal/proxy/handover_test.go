package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/levada-io/levada/internal/proxy/config"
)

// processConfig names the file of the proxy that this test binary is, instead of testing.
const processConfig = "LEVADA_TEST_PROXY_CONFIG"

// proxyProcess runs a proxy until SIGTERM, and says "ready" when it serves. SIGUSR1 drains it, SIGUSR2 undrains it; it says "drained" and "undrained" then.
func proxyProcess(file string) int {
	c, err := config.Load(file)
	if err == nil {
		var p *Proxy
		if p, err = New(c, Options{}); err == nil {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			go func() {
				for !p.Ready() {
					time.Sleep(time.Millisecond)
				}
				fmt.Println("ready")
				drainBySignal(ctx, p)
			}()
			err = p.Run(ctx)
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func drainBySignal(ctx context.Context, p *Proxy) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1, syscall.SIGUSR2)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-asked:
			if s == syscall.SIGUSR1 {
				fmt.Println(map[bool]string{true: "drained", false: "not drained"}[p.Drain()])
			} else if err := p.Undrain(); err != nil {
				fmt.Println(err)
			} else {
				fmt.Println("undrained")
			}
		}
	}
}

// startProxyProcess returns when the process serves.
func startProxyProcess(t *testing.T, cmd *exec.Cmd, file string) *exec.Cmd {
	t.Helper()
	cmd, _ = talkingProxyProcess(t, cmd, file)
	return cmd
}

// talkingProxyProcess is startProxyProcess, and returns a function that sends the process a signal and waits for what it says then.
func talkingProxyProcess(t *testing.T, cmd *exec.Cmd, file string) (_ *exec.Cmd, ask func(s os.Signal, want string)) {
	t.Helper()
	cmd.Env = append(os.Environ(), processConfig+"="+file)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewReader(out)
	said := func(want string) {
		t.Helper()
		if got, err := lines.ReadString('\n'); got != want+"\n" {
			t.Fatalf("the proxy says %q, %v, want %q", got, err, want)
		}
	}
	said("ready")
	return cmd, func(s os.Signal, want string) {
		t.Helper()
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		said(want)
	}
}

// stopProxyProcess drains it, and returns when it has ended.
func stopProxyProcess(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the proxy has ended with %v", err)
	}
}

// greeted connects and waits for the proxy's SETTINGS: a connection that is taken and closed is as bad as one that is refused.
func greetedAt(network, address string) error {
	nc, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return err
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(nc, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return err
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(nc, head); err != nil {
		return err
	}
	if http2.FrameType(head[3]) != http2.FrameSettings {
		return errors.New("no SETTINGS")
	}
	return nil
}

// TestRestartsRefuseNobody: a new process serves while the old one drains, and of the clients that connect all the time not one is refused, or taken and dropped.
func TestRestartsRefuseNobody(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"tcp", "unix", "systemd"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			network, address := "tcp", freePort(t)
			configured := address + "', reusePort: true, name: 'a"
			command := func() *exec.Cmd { return exec.Command(self) }
			switch kind {
			case "unix":
				network, address = "unix", filepath.Join(dir, "p.sock")
				configured = "unix:" + address + "', reusePort: true, name: 'a"
			case "systemd":
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				file, err := l.(*net.TCPListener).File()
				if err != nil {
					t.Fatal(err)
				}
				address = l.Addr().String()
				_ = l.Close() // the file is the one that stays
				t.Cleanup(func() { _ = file.Close() })
				configured = "systemd:grpc"
				command = func() *exec.Cmd {
					cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=grpc exec "$0"`, self)
					cmd.ExtraFiles = []*os.File{file}
					return cmd
				}
			}
			name := filepath.Join(dir, "proxy.yaml")
			text := "listeners: [{address: '" + configured + "'}]\nadmin: {address: ''}\ndrain: {period: 1s}\nbackends: [{name: b, target: '127.0.0.1:1'}]\n"
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			running := startProxyProcess(t, command(), name)
			clients := keepConnecting(t, network, address)
			for range 3 {
				clients.served("clients are served")
				next := startProxyProcess(t, command(), name)
				stopProxyProcess(t, running)
				running = next
			}
			clients.served("clients are served by the last process")
			clients.stop()
			stopProxyProcess(t, running)
		})
	}
}

// connecting are clients that connect all the time, one connection after the other.
type connecting struct {
	t       *testing.T
	n       atomic.Int64 // that were served
	done    chan struct{}
	clients sync.WaitGroup
	mu      sync.Mutex
	refused []string
}

func keepConnecting(t *testing.T, network, address string) *connecting {
	c := &connecting{t: t, done: make(chan struct{})}
	for range 4 {
		c.clients.Go(func() {
			for {
				select {
				case <-c.done:
					return
				default:
				}
				if err := greetedAt(network, address); err != nil {
					c.mu.Lock()
					c.refused = append(c.refused, err.Error())
					c.mu.Unlock()
					return
				}
				c.n.Add(1)
			}
		})
	}
	return c
}

// served waits until some more were served.
func (c *connecting) served(what string) {
	c.t.Helper()
	before := c.n.Load()
	eventually(c.t, what, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.refused) > 0 || c.n.Load() > before+20 })
}

// stop ends the clients, of which none may have been refused.
func (c *connecting) stop() {
	c.t.Helper()
	close(c.done)
	c.clients.Wait()
	if len(c.refused) > 0 {
		c.t.Errorf("%d clients were refused, after %d that were served: %s", len(c.refused), c.n.Load(), strings.Join(c.refused, "; "))
	}
}

// TestUndrainAfterAHandOver: a process that has handed its address over and drained serves again beside the new one after undrain, and alone when the new one has been
// drained: a rollout that is rolled back refuses nobody.
func TestUndrainAfterAHandOver(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			dir := t.TempDir()
			address := freePort(t)
			configured := address
			if network == "unix" {
				address = filepath.Join(dir, "p.sock")
				configured = "unix:" + address
			}
			name := filepath.Join(dir, "proxy.yaml")
			text := "listeners: [{address: '" + configured + "', reusePort: true}]\nadmin: {address: ''}\ndrain: {period: 100ms}\nbackends: [{name: b, target: '127.0.0.1:1'}]\n"
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			old, askOld := talkingProxyProcess(t, exec.Command(self), name)
			clients := keepConnecting(t, network, address)
			clients.served("the old process serves")
			next := startProxyProcess(t, exec.Command(self), name)
			askOld(syscall.SIGUSR1, "drained")
			clients.served("the new process serves")
			askOld(syscall.SIGUSR2, "undrained")
			clients.served("both serve")
			stopProxyProcess(t, next)
			clients.served("the old process serves again, alone")
			clients.stop()
			stopProxyProcess(t, old)
		})
	}
}

// TestInheritedSockets: what is wrong with sockets that are passed to the process is said in one error with what there is.
func TestInheritedSockets(t *testing.T) {
	if all, err := inheritedFrom("1", "2", ""); err != nil || all != nil {
		t.Errorf("those of another process are taken: %v, %v", all, err)
	}
	pid := fmt.Sprint(os.Getpid())
	if _, err := inheritedFrom(pid, "x", ""); err == nil || !strings.Contains(err.Error(), "LISTEN_FDS") {
		t.Error(err)
	}
	if _, err := inheritedFrom(pid, "0", ""); err != nil {
		t.Error(err)
	}
	if _, err := listenInherited("grpc"); err == nil || !strings.Contains(err.Error(), "no sockets were passed") {
		t.Error(err)
	}
}
