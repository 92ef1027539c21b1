"""What tests share: servers, models and engines made for them."""
