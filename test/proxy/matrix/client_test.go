package matrix

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/grpclife"
	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/test/proxy/fakeh2"
)

// order is a line that a client takes. Times are in milliseconds.
type order struct {
	Op      string `json:"op"`      // connect, call, cancel, close
	Channel string `json:"channel"` // of connect, call, close: a connection of its own; made when it is first named
	Target  string `json:"target"`  // of connect, call
	Within  int64  `json:"within"`  // of connect: answer "connected" then at the latest, be it so or not
	ID      string `json:"id"`      // of call, cancel; sent as the header fakeh2.IDHeader
	Path    string `json:"path"`    // of call
	Unary   bool   `json:"unary"`   // of call; else a stream from the server
	// Deadline of a call.
	Deadline int64 `json:"deadline"`
}

// clientNames is the order of the codes in a cell.
var clientNames = []string{"Go", "Node", "Python", "Java", "C++"}

// startClients starts a process per gRPC implementation, by name. Outside of CI those that cannot be run here are left out, and the log names them.
func startClients(t *testing.T) map[string]*process {
	t.Helper()
	commands := map[string]func(*testing.T) *exec.Cmd{
		"Go": func(*testing.T) *exec.Cmd { return self("client") },
		"Node": func(t *testing.T) *exec.Cmd {
			cmd := exec.Command(testserver.Program(t, "node", "nodejs"), filepath.Join("clients", "client.js"))
			cmd.Env = append(os.Environ(), "NODE_PATH="+nodeModules(t))
			return cmd
		},
		"Python": func(t *testing.T) *exec.Cmd {
			// A package without a program: what is looked for beside /usr/sbin is its library.
			testserver.Program(t, "../lib/python3/dist-packages/grpc/__init__.py", "python3-grpcio")
			return exec.Command("/usr/bin/python3", filepath.Join("clients", "client.py"))
		},
		"Java": javaClient,
		"C++":  cppClient,
	}
	started := map[string]*process{}
	for _, name := range clientNames {
		var cmd *exec.Cmd
		t.Run("with "+name, func(t *testing.T) { cmd = commands[name](t) })
		if cmd != nil {
			started[name] = startProcess(t, name, cmd)
		} else {
			t.Logf("The client %s is LEFT OUT: it cannot be run here.", name)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	return started
}

// nodeModules is a folder with what clients/package-lock.json names, kept from run to run.
func nodeModules(t *testing.T) string {
	t.Helper()
	npm := testserver.Program(t, "npm", "npm")
	files := map[string]string{}
	for _, name := range []string{"package.json", "package-lock.json"} {
		files[name] = source(t, name)
	}
	dir := cached(t, "grpc-js", []string{files["package-lock.json"]}, func(dir string) {
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		install := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		install.Dir = dir
		if said, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci for grpc-js: %v\n%s", err, said)
		}
	})
	return filepath.Join(dir, "node_modules")
}

// clientMain is the grpc-go client.
func clientMain() error {
	c := &goClient{channels: map[string]*grpc.ClientConn{}, cancels: map[string]context.CancelFunc{}}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		switch o.Op {
		case "connect":
			go c.connect(o)
		case "call":
			ctx, cancel := context.WithCancel(context.Background())
			c.mu.Lock()
			c.cancels[o.ID] = cancel
			c.mu.Unlock()
			go c.call(ctx, o)
		case "cancel":
			c.mu.Lock()
			c.cancels[o.ID]()
			c.mu.Unlock()
		case "close":
			c.channel(o).Close()
		}
	}
	return nil
}

type goClient struct {
	mu       sync.Mutex
	channels map[string]*grpc.ClientConn
	cancels  map[string]context.CancelFunc
}

func (c *goClient) channel(o order) *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.channels[o.Channel] == nil {
		conn, err := grpc.NewClient("passthrough:///"+o.Target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
		if err != nil {
			panic(err)
		}
		c.channels[o.Channel] = conn
	}
	return c.channels[o.Channel]
}

func (c *goClient) connect(o order) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(o.Within)*time.Millisecond)
	defer cancel()
	conn := c.channel(o)
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready && conn.WaitForStateChange(ctx, state); {
		state = conn.GetState()
	}
	say(event{ID: o.Channel, Event: "connected"})
}

func (c *goClient) call(ctx context.Context, o order) {
	var trailer metadata.MD
	var reply []byte
	var err error
	question, end := []byte("ask"), event{ID: o.ID, Event: "end"}
	ctx = metadata.AppendToOutgoingContext(ctx, fakeh2.IDHeader, o.ID)
	conn := c.channel(o)
	say(event{ID: o.ID, Event: "started"})
	// Its time begins after that, so that on a busy machine no deadline passes before it is due.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(o.Deadline)*time.Millisecond)
	defer cancel()
	if o.Unary {
		if err = conn.Invoke(ctx, o.Path, &question, &reply, grpc.Trailer(&trailer)); err == nil {
			end.Messages = 1
		}
	} else {
		var stream grpc.ClientStream
		if stream, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, o.Path, grpc.Trailer(&trailer)); err == nil {
			_ = stream.SendMsg(&question) // RecvMsg says why it failed
			_ = stream.CloseSend()
			for err = stream.RecvMsg(&reply); err == nil; err = stream.RecvMsg(&reply) {
				if end.Messages++; end.Messages == 1 {
					say(event{ID: o.ID, Event: "message"})
				}
				if end.Wrong == "" && string(reply) != strconv.Itoa(end.Messages) {
					end.Wrong = fmt.Sprintf("message %d is %q", end.Messages, reply)
				}
			}
		}
		err = eofIsNil(err)
	}
	end.At = now()
	s := status.Convert(err)
	end.Code, end.Text = int(s.Code()), s.Message()
	if v := trailer.Get(grpclife.TrailerEnded); len(v) > 0 {
		end.Ended = v[0]
	}
	say(end)
}
