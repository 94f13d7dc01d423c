package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/function/wire"
)

// Peer is a server of user code: what listens in a socket directory. Find fills it, AskReady and Open call it. It is not safe for concurrent use.
type Peer struct {
	Role Role
	Dir  string

	info   *serverInfo // nil until Find has found the server
	socket string
}

// UnfitError means that the server in the directory cannot be used as it is: it has another role, or another contract.
type UnfitError struct{ Text string }

func (e *UnfitError) Error() string { return e.Text }

// Limits are what a Caller keeps to.
type Limits struct {
	// Concurrency is how many messages may be in the function at a time, BatchSize how many make a batch.
	Concurrency, BatchSize int
	// MaxMessage is the largest answer, in bytes.
	MaxMessage int
	// Timeout is how long one message may take.
	Timeout time.Duration
	// NoBlocks keeps to the Numaflow contract with functions that could take blocks.
	NoBlocks bool
}

// Signs are what is known of a server beside its answers. Both may be nil.
type Signs struct {
	// Announced tells what was in user code when the server was gone.
	Announced Announcements
	// Panicked reports whether a handler panicked, as far as is known, so that the end of the call is due.
	Panicked func() bool
}

// Find looks for the server info of the role. It reports whether it is there, and returns an UnfitError if the server cannot be used.
func (p *Peer) Find() (found bool, err error) {
	at := endpoints[p.Role]
	info, err := readServerInfo(filepath.Join(p.Dir, at.info))
	if err != nil {
		return false, &UnfitError{err.Error()}
	}
	if info == nil {
		for role, other := range endpoints {
			if other.info == at.info {
				continue
			}
			if found, _ := readServerInfo(filepath.Join(p.Dir, other.info)); found != nil {
				return false, &UnfitError{fmt.Sprintf("it is a %s (it serves as %s), and a %s is needed here", other.kind, role, at.kind)}
			}
		}
		return false, nil
	}
	if err := info.check(at.kind); err != nil {
		return false, &UnfitError{err.Error()}
	}
	socket := at.socket
	if p.Role == UDF {
		mode := info.Metadata["MAP_MODE"]
		if mode == "" {
			mode = modeUnary
		}
		if socket = modeSocket[mode]; socket == "" {
			return false, &UnfitError{fmt.Sprintf("its map mode is %q, expected %s, %s or %s", mode, modeUnary, modeStream, modeBatch)}
		}
	}
	p.info, p.socket = info, filepath.Join(p.Dir, socket)
	return true, nil
}

// Found reports whether Find has found the server.
func (p *Peer) Found() bool { return p.info != nil }

// Forget makes Find look again.
func (p *Peer) Forget() { p.info, p.socket = nil, "" }

// InfoFile is the name of the server info of the role.
func (p *Peer) InfoFile() string { return endpoints[p.Role].info }

// SocketName is the name of the socket of the server that was found.
func (p *Peer) SocketName() string { return filepath.Base(p.socket) }

// Kind is what a server of the role is called.
func (p *Peer) Kind() string { return endpoints[p.Role].kind }

// AskReady asks the server once, and returns why it is not ready.
func (p *Peer) AskReady(ctx context.Context) (ready bool, reason string) {
	if _, err := os.Stat(p.socket); err != nil {
		return false, "it wrote its server info, but there is no socket " + p.SocketName()
	}
	method := endpoints[p.Role].ready
	call, cancel := context.WithTimeoutCause(ctx, time.Second, errors.New("no answer within 1s"))
	defer cancel()
	answer, err := wire.Call(call, p.socket, method, nil, 1<<20)
	if err != nil {
		return false, fmt.Sprintf("%s on %s fails: %v", method, p.SocketName(), err)
	}
	err = fields(answer, func(f protowire.Number, _ []byte, n uint64) error {
		ready = ready || f == 1 && n != 0
		return nil
	})
	if err != nil || !ready {
		return false, method + " answers that it is not ready"
	}
	return true, ""
}

// Open opens the way to call it that both sides know best. strays counts unexpected responses.
func (p *Peer) Open(ctx context.Context, l Limits, strays *atomic.Uint64, signs Signs) (Caller, error) {
	announced := signs.Announced
	if announced == nil {
		announced = func(context.Context, error) map[uint64]bool { return nil }
	}
	switch p.Role {
	case Transformer:
		return opened(openPipe(ctx, p.socket, &transform, l.Concurrency, l.MaxMessage, strays, announced))
	case UDSink, FallbackSink, OnSuccessSink:
		b, err := openBatch(ctx, p.socket, &sinkBatch, l.BatchSize, l.MaxMessage, l.Timeout, strays)
		return opened(sinkPipe{b}, err)
	case UDSource:
		return opened(openSource(ctx, p.socket, l.MaxMessage))
	}
	switch p.info.Metadata["MAP_MODE"] {
	case modeBatch:
		return opened(openBatch(ctx, p.socket, &batchMap, l.BatchSize, l.MaxMessage, l.Timeout, strays))
	case modeStream:
		s, err := openPipe(ctx, p.socket, &streamMap, l.Concurrency, l.MaxMessage, strays, announced)
		if err == nil && signs.Panicked != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.panicked = signs.Panicked
		}
		return opened(s, err)
	}
	if p.info.Metadata["LEVADA_BLOCKS"] == "1" && !l.NoBlocks {
		b, err := openBlocks(ctx, p.socket, l.Concurrency, l.MaxMessage, strays, announced)
		if err == nil && signs.Announced == nil {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.silent = true
		}
		return opened(b, err)
	}
	return opened(openPipe(ctx, p.socket, &unaryMap, l.Concurrency, l.MaxMessage, strays, announced))
}

// opened keeps a nil pointer from becoming a Caller that is not nil.
func opened[C Caller](c C, err error) (Caller, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// TakesBlocks reports whether whole blocks go over c.
func TakesBlocks(c Caller) bool {
	_, ok := c.(*blockPipe)
	return ok
}

// Settling reports whether answers of c have ended that a panic may still make void.
func Settling(c Caller) bool {
	p, ok := c.(*pipe)
	return ok && p.unsettled()
}

// Ended is closed when the stream of c has ended; nil where that shows only with the next call.
func Ended(c Caller) <-chan struct{} {
	switch c := c.(type) {
	case *pipe:
		return c.ended
	case *blockPipe:
		return c.ended
	}
	return nil
}
