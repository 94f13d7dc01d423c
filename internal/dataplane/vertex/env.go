// Package vertex builds one vertex, or a MonoVertex, from its manifest. It alone knows every driver.
package vertex

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/shlex"
	"github.com/nats-io/nats.go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/metrics"
)

// Env is what a vertex finds where it runs: it does not know whether that is a laptop or a pod.
type Env struct {
	Namespace, Pipeline string
	// Owner says the same with the kind, and which lifetime of the store this is.
	Owner naming.Owner
	// Meta holds the annotations.
	Meta metav1.Object
	// Positions remember how far the partitions of a source vertex are.
	Positions func(vertex string) source.Positions
	// Readers are the partitions of a vertex's buffer, with the shards of each, for the vertex itself: this process is the only one that reads them.
	Readers func(vertex string) []*buffer.Reader
	// Shared, if not empty, says that the partitions which the vertex reads come and go: other processes share it. It is the name of the first one. See Vertex.RunPartition.
	Shared string
	// Writers are the same for the vertices that write to it. Their reader may be in another process.
	Writers func(vertex string) []*buffer.Writer
	// DeadLetters takes messages that no retry helps.
	DeadLetters *deadletter.Store
	Metrics     *metrics.Set
	Logger      *slog.Logger
	// SocketRoot is where functions get their sockets, and volumes their directories; it need not survive the process. Dir is where relative paths of the manifest
	// begin.
	SocketRoot, Dir string
	// Data is the directory where vertices keep files that must survive; each has names of its own there.
	Data string
	// Files are the files that sinks write, of all pipelines of this process.
	Files *Files
	// Commands are the programs that stand in for containers: by vertex, or by vertex/role.
	Commands map[string]string
	// FunctionEnv names variables of this process that functions get beside the few that all get; see function.Inherited.
	FunctionEnv []string
	// FunctionUser is whom functions run as; nil for the user of this process.
	FunctionUser *function.User
	// Timeout is how long a function may take for a message, where the manifest does not say; 0 for the default.
	Timeout time.Duration
	// Secret returns a value of a secret.
	Secret func(name, key string) (string, error)
	// Values returns all values of a ConfigMap or a Secret.
	Values func(kind, name string) (map[string]string, error)
	// Output returns what gets the lines that a function prints.
	Output func(vertex string, role function.Role) func(line string)
	// Source, if not nil, stands between a vertex and its source: it opens the source, or gives another reader.
	Source func(vertex string, open func() (source.Reader, error)) (source.Reader, error)
	// Announce is called with each address on which a vertex listens.
	Announce func(vertex, what, address string)
	// Replica is which of several processes this is that run the vertex at the same time.
	Replica Replica
	// Rate, if not nil, makes a limit of messages a second that this process shares with others which run the vertex.
	Rate func(perSecond uint64) Rate
	// Listen is where sources take connections.
	Listen Listen
	Stdin  io.Reader
	Stdout io.Writer
}

// Replica is one of several processes that run a vertex at the same time.
type Replica = forward.Replica

// Rate is a limit of messages in a time.
type Rate = forward.Rate

// Listen says where the sources of a vertex take connections.
type Listen struct {
	// Host is a host name or an address, without a port. Required for vertices that listen.
	Host string
	// Shared says that other vertices listen on the same host: where the default port is taken, any that is free is used.
	Shared bool
	// Beside reports whether there are other processes of the vertex, which may listen on the same host: where a port is taken then, any that is free is used. nil: there are none.
	Beside func(context.Context) bool
	// Address is what functions get as the address of the pod and of the host (status.podIP, status.hostIP).
	Address string
}

// path resolves a path of the manifest.
func (e *Env) path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(e.Dir, p)
}

// program finds what runs in the place of a container: a command, or nil with the image.
func (e *Env) program(vertex string, role function.Role, c *v1alpha1.Container) (command []string, image string, err error) {
	// In this order: the flag for the role, the flag for the vertex, the annotation, the command of the container. A flag for the vertex is not for its transformer
	// or its other sinks: they are other programs.
	line := e.Commands[vertex+"/"+string(role)]
	if line == "" && role != function.Transformer && role != function.FallbackSink && role != function.OnSuccessSink {
		line = e.Commands[vertex]
	}
	if line == "" {
		line = v1alpha1.FunctionCommand(e.Meta, vertex, v1alpha1.Role(role))
	}
	if dir, ok := strings.CutPrefix(line, attachPrefix); ok {
		if dir == "" {
			return nil, "", fmt.Errorf("vertex %s: its %s is %q: expected %sDIRECTORY, where the program serves", vertex, role, line, attachPrefix)
		}
		return []string{attachPrefix + e.path(dir)}, "", nil
	}
	if line != "" {
		command, err = shlex.Split(line)
		if err == nil && len(command) == 0 {
			err = errors.New("it is empty")
		}
		if err != nil {
			return nil, "", fmt.Errorf("vertex %s: the command for its %s, %q: %w", vertex, role, line, err)
		}
		return e.absolute(command), "", nil
	}
	if c == nil {
		return nil, "", nil
	}
	if c.Image == "" && len(c.Command) > 0 {
		return e.absolute(append([]string(nil), c.Command...)), "", nil
	}
	return nil, c.Image, nil
}

// attachPrefix begins what stands for a program that is started elsewhere: unix: and the directory in which it serves.
const attachPrefix = "unix:"

// absolute resolves a command that is a path, like the other paths of a manifest.
func (e *Env) absolute(command []string) []string {
	if strings.ContainsRune(command[0], filepath.Separator) {
		// Relative to the manifest, or to where levada was started: whichever exists.
		if p := e.path(command[0]); fileExists(p) || !fileExists(command[0]) {
			command[0] = p
		}
		if p, err := filepath.Abs(command[0]); err == nil {
			command[0] = p // a path without a separator would be looked for in PATH
		}
	}
	return command
}

// fileExists is false also for what may not be looked at.
func fileExists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// environment is the whole environment of a process: what all functions get of ours, and values.
func (e *Env) environment(values map[string]string) (vars []string) {
	// Values of the manifest win over what all functions inherit.
	all := function.Inherited(e.FunctionEnv, e.FunctionUser)
	maps.Copy(all, values)
	for k, v := range all {
		vars = append(vars, k+"="+v)
	}
	return vars
}

// natsOptions are the options to connect to a server of the manifest.
func (e *Env) natsOptions(tls *v1alpha1.TLS, auth *v1alpha1.NatsAuth) (opts []nats.Option, err error) {
	opts = []nats.Option{nats.Name("levada " + e.Pipeline), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond), nats.RetryOnFailedConnect(false)}
	if tls != nil {
		cfg, err := e.tlsConfig(tls)
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.Secure(cfg))
	}
	if auth == nil {
		return opts, nil
	}
	login, err := e.login(auth)
	return append(opts, login...), err
}

// login are the options of a user, a token or a key. Nothing for none of them.
func (e *Env) login(auth *v1alpha1.NatsAuth) (opts []nats.Option, err error) {
	// Missing secrets are all named, not only the first.
	get := func(err *error, name, key string) string {
		v, e := e.Secret(name, key)
		*err = errors.Join(*err, e)
		return v
	}
	switch {
	case auth.Basic != nil && auth.Basic.User != nil && auth.Basic.Password != nil:
		opts = append(opts, nats.UserInfo(get(&err, auth.Basic.User.Name, auth.Basic.User.Key), get(&err, auth.Basic.Password.Name, auth.Basic.Password.Key)))
	case auth.Token != nil:
		opts = append(opts, nats.Token(get(&err, auth.Token.Name, auth.Token.Key)))
	case auth.NKey != nil:
		seed := get(&err, auth.NKey.Name, auth.NKey.Key)
		if err == nil {
			opt, e := nkeyOption(seed)
			opts, err = append(opts, opt), e
		}
	}
	return opts, err
}

// closers run in the reverse order, once: what was opened last may need what was opened before. The zero value is ready.
type closers struct {
	mu   sync.Mutex
	list []func(context.Context) error // nil once they ran
}

// add adds one. After close it is never called.
func (c *closers) add(f func(context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, f)
}

// close runs all of them, also after an error.
func (c *closers) close(ctx context.Context) (err error) {
	c.mu.Lock()
	list := c.list
	c.list = nil
	c.mu.Unlock()
	for i := len(list) - 1; i >= 0; i-- {
		err = errors.Join(err, list[i](ctx))
	}
	return err
}
