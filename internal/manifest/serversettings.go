package manifest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats-server/v2/conf"
)

// ServerSettings is what Levada reads of JetStreamBufferService.Settings, a fragment of nats.conf. 0: not set.
type ServerSettings struct {
	MaxPayload, MaxMemoryStore, MaxFileStore int64 // bytes
}

// maxMaxPayload is the largest max_payload that a NATS server accepts.
const maxMaxPayload = 64 << 20

// elsewhere matches an include, and the value of an environment variable: the file and the variable would be those of the machine that reads the manifest.
var elsewhere = regexp.MustCompile(`(?m)(?:^|[{,;])\s*(include)\s|[:=\s]\s*(\$\w+)`)

// ParseServerSettings reads a fragment of nats.conf as the server does: with blocks, comments and units. unknown are keys that are not read.
func ParseServerSettings(text *string) (s ServerSettings, unknown []string, err error) {
	if text == nil {
		return s, nil, nil
	}
	if m := elsewhere.FindStringSubmatch(*text); m != nil {
		return s, nil, fmt.Errorf("%s is not supported: write the value itself", m[1]+m[2])
	}
	values, err := conf.Parse(*text)
	if err != nil {
		return s, nil, fmt.Errorf("not a fragment of nats.conf: %s", strings.ToLower(err.Error()[:1])+err.Error()[1:])
	}
	known := map[string]struct {
		to    *int64
		limit int64
	}{"max_payload": {&s.MaxPayload, maxMaxPayload}, "max_memory_store": {&s.MaxMemoryStore, math.MaxInt64}, "max_file_store": {&s.MaxFileStore, math.MaxInt64}}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(values)) {
		k, ok := known[strings.ToLower(key)]
		if !ok {
			unknown = append(unknown, key)
			continue
		}
		n, ok := bytesOf(values[key])
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s is %q, not a number of bytes such as 8MB", key, fmt.Sprint(values[key])))
		case n < 1 || n > k.limit:
			errs = append(errs, fmt.Errorf("%s is %d bytes, but must be from 1 to %d", key, n, k.limit))
		default:
			*k.to = n
		}
	}
	return s, unknown, errors.Join(errs...)
}

// settingKeys are the keys that ParseServerSettings knows.
var settingKeys = []string{"max_payload", "max_memory_store", "max_file_store"}

func bytesOf(value any) (int64, bool) {
	switch v := value.(type) {
	case int64:
		return v, true
	case string:
		n, err := humanize.ParseBytes(v)
		return int64(min(n, math.MaxInt64)), err == nil && v != ""
	}
	return 0, false
}
