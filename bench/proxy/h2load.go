package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// h2load is the generator of nghttp2, whose own cost is small.
type h2load struct {
	lab     *lab
	program string
	load    load
	body    string // file of one gRPC message
}

// nghttpd starts the backend for h2load: it sends a file of one gRPC message, whatever it is asked, and the trailer of a call that went well.
func (l *lab) nghttpd(ld load) (*process, string, error) {
	program, err := install("nghttpd", "nghttp2-server")
	if err != nil {
		return nil, "", err
	}
	root := filepath.Join(l.dir, fmt.Sprintf("htdocs-%d", ld.Size))
	file := filepath.Join(root, filepath.FromSlash(unaryMethod))
	types := filepath.Join(l.dir, "mime.types")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, ld.framed(), 0o644),
		os.WriteFile(types, []byte("application/grpc grpc\n"), 0o644)); err != nil {
		return nil, "", err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	p, err := l.start("nghttpd", loadCore, program, "--no-tls", "--address=127.0.0.1", "--htdocs="+root, "--mime-types-file="+types,
		"--trailer=grpc-status: 0", "--max-concurrent-streams=1000", port(address))
	if err != nil {
		return nil, "", err
	}
	if err := p.ready(address); err != nil {
		return nil, "", p.failed(err)
	}
	return p, address, nil
}

// framed is the message with gRPC's prefix: not compressed, and its length.
func (l load) framed() []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(l.Size)), l.payload()...)
}

func (l *lab) h2load(ld load) (*h2load, error) {
	program, err := install("h2load", "nghttp2-client")
	if err != nil {
		return nil, err
	}
	h := &h2load{lab: l, program: program, load: ld, body: filepath.Join(l.dir, fmt.Sprintf("body-%d", ld.Size))}
	return h, os.WriteFile(h.body, ld.framed(), 0o644)
}

// run makes n requests. It opens new connections.
func (h *h2load) run(target string, n int) (outcome, error) {
	log := filepath.Join(h.lab.dir, "h2load.log")
	if err := os.RemoveAll(log); err != nil {
		return outcome{}, err
	}
	scheme := "http"
	if h.load.TLS {
		scheme = "https"
	}
	ctx, cancel := context.WithTimeout(context.Background(), stall)
	defer cancel()
	cmd := exec.CommandContext(ctx, "taskset", "-c", loadCore, h.program, "-t", "1", "-n", strconv.Itoa(n),
		"-c", strconv.Itoa(h.load.Connections), "-m", strconv.Itoa(h.load.Streams), "-d", h.body,
		"-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file="+log, scheme+"://"+target+unaryMethod)
	said, err := cmd.CombinedOutput()
	if err != nil {
		return outcome{}, fmt.Errorf("h2load: %w\n%s", errors.Join(ctx.Err(), err), said)
	}
	o, err := parseH2load(string(said), len(h.load.framed()))
	if err != nil {
		return o, fmt.Errorf("%w\n%s", err, said)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		return o, err
	}
	took, err := parseH2loadLog(bytes.NewReader(b))
	if err != nil {
		return o, err
	}
	if len(took) > 0 {
		slices.Sort(took)
		o.P50, o.P99 = percentile(took, 0.5), percentile(took, 0.99)
	}
	return o, nil
}

var (
	h2loadRate     = regexp.MustCompile(`finished in ([0-9.]+)(us|ms|s), `)
	h2loadRequests = regexp.MustCompile(`requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded, `)
	h2loadData     = regexp.MustCompile(`traffic: .* \((\d+)\) data`)
	h2loadStatuses = regexp.MustCompile(`status codes: .*`)
)

// parseH2load reads what h2load prints at its end. Each answer has to be of so many bytes.
func parseH2load(said string, size int) (o outcome, err error) {
	rate, requests, data := h2loadRate.FindStringSubmatch(said), h2loadRequests.FindStringSubmatch(said), h2loadData.FindStringSubmatch(said)
	if rate == nil || requests == nil || data == nil {
		return o, errors.New("h2load does not say how long it took, how many requests succeeded and how many bytes came")
	}
	if o.Seconds, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return o, fmt.Errorf("h2load: %w", err)
	}
	o.Seconds *= map[string]float64{"us": 1e-6, "ms": 1e-3, "s": 1}[rate[2]]
	total, err := strconv.Atoi(requests[1])
	if err != nil {
		return o, fmt.Errorf("h2load: %w", err)
	}
	if o.Done, err = strconv.Atoi(requests[2]); err != nil {
		return o, fmt.Errorf("h2load: %w", err)
	}
	if o.Failed = total - o.Done; o.Failed > 0 {
		o.Error = h2loadStatuses.FindString(said)
	} else if want := strconv.Itoa(total * size); data[1] != want {
		o.Done, o.Failed, o.Error = 0, total, fmt.Sprintf("%s bytes of messages came, not %s", data[1], want)
	}
	return o, nil
}

// parseH2loadLog returns the microseconds of each request: a line is when it began, its status and how long it took.
func parseH2loadLog(r io.Reader) (micros []float64, err error) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 {
			return nil, fmt.Errorf("h2load's log: 3 fields were expected in %q", lines.Text())
		}
		n, err := strconv.ParseFloat(fields[2], 64)
		if err != nil {
			return nil, fmt.Errorf("h2load's log: %w", err)
		}
		micros = append(micros, n)
	}
	return micros, nil
}
