package natslink_test

import (
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/natslink"
)

// A server that keeps no metadata of streams was accepted, and "levada buffers" took live buffers for somebody else's.
func TestServersThatAreTooOldAreRefused(t *testing.T) {
	for version, old := range map[string]bool{"2.9.10": true, "2.10.29": true, "1.4.1": true, "2.11.0": false, "2.12.0-dev": false, "2.15.2": false, "3.0.0": false, "": false, "unknown": false} {
		err := natslink.CheckVersion("nats://broker:4222", version)
		if (err != nil) != old {
			t.Errorf("%q: %v", version, err)
		}
		if err != nil && (!strings.Contains(err.Error(), version) || !strings.Contains(err.Error(), "2.11") || !strings.Contains(err.Error(), "nats://broker:4222")) {
			t.Error(err)
		}
	}
}
