"""A picture inside another file, such as an insightface record or verification file."""
import io


class StoredPicture(io.BytesIO):
    """What open_image takes; its name is what an error message calls it."""

    def __init__(self, content, name):
        super().__init__(content)
        self.name = self.filename = name

    def __str__(self):
        return self.name
