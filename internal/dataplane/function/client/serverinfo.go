package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Role is what a container is in its vertex: the value of NUMAFLOW_UD_CONTAINER_TYPE.
type Role string

// The roles of this version.
const (
	UDF           Role = "udf"
	Transformer   Role = "transformer"
	UDSource      Role = "udsource"
	UDSink        Role = "udsink"
	FallbackSink  Role = "fb-udsink"
	OnSuccessSink Role = "ons-udsink"
)

// endpoint is where a role's server is found in the socket directory, and what it is called in the version check.
type endpoint struct{ kind, info, socket, ready string }

var endpoints = map[Role]endpoint{
	UDF:           {"mapper", "mapper-server-info", "map.sock", "/map.v1.Map/IsReady"},
	Transformer:   {"sourcetransformer", "sourcetransformer-server-info", "sourcetransform.sock", "/sourcetransformer.v1.SourceTransform/IsReady"},
	UDSource:      {"sourcer", "sourcer-server-info", "source.sock", "/source.v1.Source/IsReady"},
	UDSink:        {"sinker", "sinker-server-info", "sink.sock", "/sink.v1.Sink/IsReady"},
	FallbackSink:  {"fb-sinker", "fb-sinker-server-info", "fb-sink.sock", "/sink.v1.Sink/IsReady"},
	OnSuccessSink: {"ons-sinker", "ons-sinker-server-info", "ons-sink.sock", "/sink.v1.Sink/IsReady"},
}

// The modes of a mapper, in the metadata of its server info.
const (
	modeUnary  = "unary-map"
	modeStream = "stream-map"
	modeBatch  = "batch-map"
)

var modeSocket = map[string]string{modeUnary: "map.sock", modeStream: "mapstream.sock", modeBatch: "batchmap.sock"}

// serverInfo is what a function writes beside its socket, as SDKs of Numaflow do. Every key is optional.
type serverInfo struct {
	Protocol        string            `json:"protocol"`
	Language        string            `json:"language"`
	MinimumPlatform string            `json:"minimum_numaflow_version"`
	Version         string            `json:"version"`
	Metadata        map[string]string `json:"metadata"`
}

const infoEnd = "U+005C__END__"

// readServerInfo returns nil while the file is not there or not whole. The error says that it cannot be read, or makes no sense.
func readServerInfo(path string) (*serverInfo, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(b) == 0:
		return nil, nil // not there yet
	case err != nil:
		return nil, fmt.Errorf("server info of the function: %w", err)
	}
	text, whole := bytes.CutSuffix(bytes.TrimSpace(b), []byte(infoEnd))
	if !whole {
		return nil, nil
	}
	var info serverInfo
	if err := json.Unmarshal(text, &info); err != nil {
		return nil, fmt.Errorf("server info %s is not JSON: %w", filepath.Base(path), err)
	}
	return &info, nil
}

// Platform is the Numaflow release whose contract we keep.
const Platform = "1.8.3"

// oldest are the SDK releases below which the contract was another, by language and kind; "" is the rule for kinds not named.
var oldest = map[string]map[string]string{
	"go":     {"": "0.9.0", "ons-sinker": "0.10.2"},
	"python": {"": "0.9.0", "ons-sinker": "0.11.1"},
	"java":   {"": "0.9.0", "ons-sinker": "0.10.2"},
	"rust":   {"": "0.2.0", "ons-sinker": "0.4.0"},
}

// check refuses a function that was built with an SDK that we, or it with a platform that it, cannot work with.
func (s *serverInfo) check(kind string) error {
	if s.MinimumPlatform != "" && older(Platform, s.MinimumPlatform) {
		return fmt.Errorf("the function's SDK needs Numaflow %s or later; this platform speaks the contract of %s: build the function with an older SDK", s.MinimumPlatform, Platform)
	}
	if s.Protocol == "tcp" {
		return fmt.Errorf("the function offers TCP endpoints (multi-processing of an old Python SDK), which the contract no longer has: build it with a current SDK")
	}
	rules, known := oldest[s.Language]
	if !known || s.Version == "" {
		return nil
	}
	least := rules[kind]
	if least == "" {
		least = rules[""]
	}
	if older(s.Version, least) {
		return fmt.Errorf("the function was built with version %s of the %s SDK; at least %s is needed", s.Version, s.Language, least)
	}
	return nil
}

// older compares the numbers of two versions. What follows the third number (-z, rc100, a build date) does not matter for a floor.
func older(v, floor string) bool {
	a, b := numbers(v), numbers(floor)
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

func numbers(v string) (n [3]int) {
	parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	for i, p := range parts {
		end := 0
		for end < len(p) && p[end] >= '0' && p[end] <= '9' {
			end++
		}
		n[i], _ = strconv.Atoi(p[:end])
	}
	return n
}
