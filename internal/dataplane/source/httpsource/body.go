package httpsource

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// freeBody is what each payload may have without counting: small messages pass whatever others do. With MaxConnections it is bounded as well.
const freeBody = 8 << 10

// roomWait is how long a sender waits for memory for the rest of its payload before it is refused.
const roomWait = 2 * time.Second

// body reads the payload. Its memory grows with what has arrived. It must arrive at the minimum rate.
func (r *Reader) body(w http.ResponseWriter, in *http.Request) ([]byte, *refusal) {
	size := in.ContentLength // -1 if it does not say
	limit := r.cfg.MaxBody
	if size >= 0 {
		limit = size
	}
	client := clientOf(in.RemoteAddr)
	taken := int64(0)
	defer func() { r.release(client, taken) }()
	value := make([]byte, 0, min(limit, freeBody))
	pace := pace{limit: http.NewResponseController(w), rate: r.cfg.MinRate, window: r.cfg.RateWindow, begun: time.Now()}
	for int64(len(value)) != size {
		if len(value) == cap(value) {
			if int64(len(value)) == limit { // of a payload that does not say its size: is there more?
				if n, err := in.Body.Read(make([]byte, 1)); n > 0 {
					return nil, r.tooLarge()
				} else if err == io.EOF {
					return value, nil
				} else if err != nil {
					return nil, r.cutOff(err)
				}
				continue
			}
			grown := min(2*int64(cap(value))+freeBody, limit)
			if no := r.take(in, client, grown-int64(cap(value))); no != nil {
				return nil, no
			}
			taken += grown - int64(cap(value))
			value = append(make([]byte, 0, grown), value...)
		}
		n, err := in.Body.Read(value[len(value):cap(value)])
		value = value[:len(value)+n]
		if err == io.EOF && (size < 0 || int64(len(value)) == size) {
			return value, nil
		}
		if err != nil {
			return nil, r.cutOff(err)
		}
		pace.arrived(int64(n))
	}
	return value, nil
}

func (r *Reader) cutOff(err error) *refusal {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &refusal{http.StatusRequestTimeout, fmt.Sprintf("the payload came more slowly than %d bytes a second for %v; send the message again", r.cfg.MinRate, r.cfg.RateWindow)}
	}
	return &refusal{http.StatusBadRequest, "the payload ended early"}
}

// pace moves the deadline of a sender that is fast enough. A deadline that has passed cannot be moved: the server takes it as the sender's end.
type pace struct {
	limit  *http.ResponseController
	rate   int64
	window time.Duration
	begun  time.Time // of the window, in which so many bytes came
	bytes  int64
}

func (p *pace) arrived(n int64) {
	p.bytes += n
	if p.bytes < int64(float64(p.rate)*p.window.Seconds()) {
		return
	}
	now := time.Now()
	if now.Sub(p.begun) < p.window/10 {
		return // of a fast sender, not with each piece
	}
	p.begun, p.bytes = now, 0
	_ = p.limit.SetReadDeadline(now.Add(p.window))
}

// take takes memory for a payload that is not complete. It waits a moment for some.
func (r *Reader) take(in *http.Request, client string, size int64) *refusal {
	for waited := time.Duration(0); ; waited += 10 * time.Millisecond {
		if r.tryTake(client, size) {
			return nil
		}
		if waited >= min(roomWait, r.cfg.RateWindow/4) {
			return &refusal{http.StatusTooManyRequests, "too many large payloads are on their way; send the message again"}
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-in.Context().Done():
			return &refusal{http.StatusBadRequest, "the payload ended early"}
		case <-r.closed:
			return &refusal{http.StatusServiceUnavailable, "the source is closing; send the message again"}
		}
	}
}

func (r *Reader) tryTake(client string, size int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.partial+size > max(r.cfg.MaxBytes/2, r.cfg.MaxBody) || r.clients[client]+size > max(r.cfg.MaxBytes/4, r.cfg.MaxBody) {
		return false
	}
	r.partial += size
	r.clients[client] += size
	return true
}

func (r *Reader) release(client string, size int64) {
	if size == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.partial -= size
	if r.clients[client] -= size; r.clients[client] == 0 {
		delete(r.clients, client)
	}
}

// clientOf is the address of a client without its port.
func clientOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
